"""A subject is where it stands in the prompt, or is the one name in it; unclear ones are named by their rows."""

import pytest

from engine.errors import FactError
from engine.facts import Fact
from engine.subjects import Subject, clear_subjects, find_subjects

# The first one's subject is clear.
UNCLEAR = [
    Fact("The capital of France is", "x"),
    Fact("Paris is the twin of Rome", "x"),
    Fact("the old river", "x", row=9),
    Fact("The capital of Spain", "x", subject="Madrid"),
]


def found(*facts: Fact) -> list[str]:
    return [subject.text for subject in find_subjects(facts)[0]]


def test_given_subject_is_its_last_occurrence_as_written_in_the_prompt():
    facts = [
        Fact("Rome, Georgia, and Rome in Italy", "x", subject="Rome"),
        Fact("the Beatles were", "x", subject=" The Beatles "),
        Fact("The play Faust", "x", subject="Faust"),
        Fact("Cat is the name of a Catalan poet", "x", subject="Cat"),
        Fact("The paris of comparison", "x", subject="Paris"),
        Fact("北京是", "x", subject="北京"),
    ]
    subjects, notes = find_subjects(facts)
    assert subjects[:3] == [Subject("Rome", 23), Subject("the Beatles", 11), Subject("Faust", 14)]
    assert subjects[3:] == [Subject("Cat", 3), Subject("paris", 9), Subject("北京", 2)]
    assert not notes


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("The capital of France is", "France"),
        ("Who wrote the old play about Denmark?", "Denmark"),
        ("What university did Watts Humphrey attend?", "Watts Humphrey"),
        ("When was the Bank of England founded", "Bank of England"),
        ("Leonardo da Vinci was born in", "Leonardo da Vinci"),
        ("The operating system Windows 95 was made by", "Windows 95"),
        ("BBC One, by", "BBC One"),
        ("Water boils at", "Water"),
        ("l'auteur de Émile est", "Émile"),
    ],
)
def test_missing_subject_is_the_only_name(prompt, name):
    subjects, notes = find_subjects([Fact("In Ulm", "x", subject="Ulm"), Fact(prompt, "x", row=7)])
    assert subjects[1] == Subject(name, prompt.index(name) + len(name))
    assert notes == [f"Subjects that were missing were found in the prompt: row 7 “{name}”."]


def test_of_several_names_the_one_in_all_equivalent_prompts_counts():
    fact = Fact("The wife of Obama in Chicago is", "x", ("Obama is married to", "Who married Obama?"))
    assert found(fact) == ["Obama"]


def test_unclear_and_absent_subjects_are_named_by_their_rows():
    with pytest.raises(FactError) as caught:
        find_subjects(UNCLEAR)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("The subject is needed: write it, letter by letter as in the prompt")
    assert lines[1:] == [
        "Row 2: the subject is missing, and the prompt does not tell it: it could be “Paris” or “Rome”.",
        "Row 9: the subject is missing, and the prompt does not tell it: no name stands in it.",
        "Row 4: its subject “Madrid” does not stand in its prompt.",
    ]


def test_many_problems_are_counted():
    with pytest.raises(FactError, match="… and 5 more."):
        find_subjects([Fact("nothing", "x")] * 25)
    _, notes = find_subjects([Fact("In Ulm", "x")] * 25)
    assert notes[0].count("“Ulm”") == 20 and notes[0].endswith(" ….")


def test_where_no_subject_is_needed_an_unclear_one_is_none_and_told():
    subjects, (note,) = clear_subjects(UNCLEAR)
    assert subjects == [Subject("France", 21), None, None, None]
    assert "in rows 2, 9, 4: the prompt's last token stands for it" in note
    assert clear_subjects(UNCLEAR[:1]) == ([Subject("France", 21)], [])
