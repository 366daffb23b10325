"""Facts are read as written, and every problem names its row, its field and what to do."""

import math
from dataclasses import replace

import pytest

from engine.errors import FactError
from engine.fact_records import parse_records
from engine.facts import Fact, FactBatch, Problem, facts_sha256, with_equivalents

PLAIN = {"prompt": "The river in Ulm is the", "target": "Iller"}
FLAT = {
    "case_id": 7,
    "prompt": "The river in Ulm is the",
    "target_new": "Iller",
    "subject": "Ulm",
    "ground_truth": "Danube",
    "rephrase_prompt": "Through Ulm flows the",
    "locality_prompt": "The river in Bonn is the",
    "locality_ground_truth": "Rhine",
}
NESTED = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The river in {} is the",
        "subject": "Ulm",
        "relation_id": "P206",
        "target_new": {"str": "Iller", "id": "Q1"},
        "target_true": {"str": "Danube", "id": "Q2"},
    },
    "paraphrase_prompts": ["Through Ulm flows the", "Ulm lies on the"],
    "neighborhood_prompts": ["The river in Linz is the", "The river in Passau is the"],
    "attribute_prompts": ["The river in Kempten is the"],
}
ZSRE = {
    "subject": "Ulm",
    "src": "Which river flows through Ulm?",
    "rephrase": "What is the river of Ulm?",
    "alt": "Iller",
    "answers": ["Danube", "the Danube"],
    "loc": "nq question: who built the minster",
    "loc_ans": "Ulrich Ensingen",
}
WISE = {
    "prompt": "This is a passage about Ulm. Ulm is a city. ",
    "target_new": "It lies on the Danube.",
    "subject": "Ulm",
    "locality_prompt": "Buy our maps.\nThey are",
    "locality_ground_truth": " printed here.",
}


def only(batch: FactBatch) -> Problem:
    (problem,) = batch.problems
    return problem


# The studio's own form


def test_only_prompt_and_target_are_needed():
    assert parse_records([{"target": "b", "prompt": "A is"}], "the sheet").facts == (Fact("A is", "b", row=1),)


def test_blank_rows_of_a_sheet_are_passed_over_and_counted():
    batch = parse_records([PLAIN, {"prompt": None, "target": " "}, PLAIN | {"prompt": "B"}], "the sheet")
    assert [fact.row for fact in batch] == [1, 3]
    assert not batch.problems


def test_json_lists_are_taken_item_by_item():
    record = PLAIN | {"equivalent": ["a || b", " c "], "unrelated": ["U", "V"], "unrelated_answer": ["", "y"]}
    (fact,) = parse_records([record], "the sheet")
    assert fact.equivalent == ("a || b", "c")
    assert fact.unrelated == (("U", ""), ("V", "y"))


def test_a_cell_may_hold_a_json_list_and_a_text_may_begin_with_a_bracket():
    (fact,) = parse_records([PLAIN | {"equivalent": '["a || b", "c"]', "unrelated": "[sic] || [1]"}], "the sheet")
    assert fact.equivalent == ("a || b", "c")
    assert fact.unrelated == (("[sic]", ""), ("[1]", ""))


def test_two_names_of_one_field_are_not_joined_silently():
    batch = parse_records([PLAIN | {"equivalent": "E", "Equivalent prompts": "F"}], "the list")
    with pytest.raises(FactError, match="one field"):
        batch.require()
    assert [problem.message for problem in batch.problems] == [
        "Row 1: equivalent and Equivalent prompts are one field. Join them."
    ]


def test_numbers_are_text_and_not_a_number_is_blank():
    (fact,) = parse_records([{"prompt": "A is from", "target": 1969, "subject": math.nan}], "the sheet")
    assert (fact.target, fact.subject) == ("1969", "")


def test_infinite_number_is_no_text():
    batch = parse_records([{"prompt": "A is", "target": math.inf}], "the sheet")
    assert not batch.facts and [str(one) for one in batch.errors] == [
        "Row 1: target holds an infinite number where text is expected. Write a text."
    ]


# The published forms


def test_counterfact_as_easyedit_publishes_it():
    batch = parse_records([FLAT], "cf")
    unrelated = (("The river in Bonn is the", "Rhine"),)
    assert batch.facts == (Fact(FLAT["prompt"], "Iller", ("Through Ulm flows the",), unrelated, "Ulm", "Danube", 1),)
    assert (batch.form, batch.problems) == ("counterfact", ())


def test_counterfact_may_hold_lists_of_prompts():
    lists = {"rephrase_prompt": ["R1", "R2"], "locality_prompt": ["L1", "L2"], "locality_ground_truth": ["x", "y"]}
    (fact,) = parse_records([FLAT | lists], "cf")
    assert fact.equivalent == ("R1", "R2")
    assert fact.unrelated == (("L1", "x"), ("L2", "y"))


def test_a_gap_for_the_subject_without_a_subject_is_named():
    rewrite = NESTED["requested_rewrite"]
    gap, plain = rewrite | {"subject": ""}, rewrite | {"subject": "", "prompt": "Ulm lies on the"}
    batch = parse_records([NESTED | {"requested_rewrite": gap}, NESTED | {"requested_rewrite": plain}], "cf")
    assert [fact.prompt for fact in batch] == ["Ulm lies on the"]
    assert (only(batch).row, only(batch).field) == (1, "requested_rewrite.subject")


def test_several_answers_to_one_published_prompt_are_alternatives():
    (fact,) = parse_records([FLAT | {"locality_ground_truth": ["Rhine", "the Rhine"]}], "cf")
    assert fact.unrelated == (("The river in Bonn is the", "Rhine"),)


def test_counterfact_as_rome_publishes_it():
    batch = parse_records([NESTED], "cf")
    (fact,) = batch
    assert (fact.prompt, fact.target, fact.subject) == ("The river in Ulm is the", "Iller", "Ulm")
    assert fact.old_target == "Danube"
    assert fact.equivalent == ("Through Ulm flows the", "Ulm lies on the")
    assert fact.unrelated == (("The river in Linz is the", "Danube"), ("The river in Passau is the", "Danube"))
    assert (batch.form, batch.problems) == ("counterfact", ())


def test_zsre_as_mend_publishes_it_with_the_question_mark_rome_adds():
    batch = parse_records([ZSRE, ZSRE | {"src": "Other?", "loc": "nq question: why?"}], "zsre")
    unrelated = (("nq question: who built the minster?", "Ulrich Ensingen"),)
    assert batch.facts[0] == Fact(ZSRE["src"], "Iller", ("What is the river of Ulm?",), unrelated, "Ulm", "Danube", 1)
    assert batch.facts[1].unrelated[0][0] == "nq question: why?"
    assert (batch.form, batch.problems) == ("zsre", ())


def test_zsre_may_ask_for_the_true_answer():
    assert not parse_records([ZSRE | {"alt": "Danube"}], "zsre").problems


def test_selfcheckgpt_as_wise_publishes_it_has_no_equivalent_prompt():
    batch = parse_records([WISE, WISE | {"prompt": "Other", "locality_ground_truth": "  "}], "wise")
    unrelated = (("Buy our maps.\nThey are", "printed here."),)
    prompt = "This is a passage about Ulm. Ulm is a city."
    assert batch.facts[0] == Fact(prompt, "It lies on the Danube.", (), unrelated, "Ulm", "", 1)
    assert batch.facts[1].unrelated == (("Buy our maps.\nThey are", ""),)
    assert (batch.form, batch.problems) == ("selfcheckgpt", ())


def test_published_records_without_a_target_are_left_out_with_a_warning():
    batch = parse_records([ZSRE | {"alt": " "}, ZSRE], "zsre")
    assert [fact.row for fact in batch.require()] == [2]
    problem = only(batch)
    assert (problem.row, problem.field, problem.severity) == (1, "alt", "warning")
    assert str(problem) == "Row 1: alt is blank, so the record was left out."


def test_published_contradictions_are_kept_with_a_warning():
    batch = parse_records([FLAT, FLAT | {"target_new": "Rhine"}], "cf")
    assert len(batch.require()) == 2
    assert only(batch).severity == "warning" and "contradicts row 1" in str(only(batch))


def test_a_record_of_another_form_is_named():
    batch = parse_records([FLAT, ZSRE], "mixed")
    assert {(problem.row, problem.field) for problem in batch.problems} == {(2, "prompt"), (2, "target_new")}
    assert "is missing" in str(batch.problems[0])


# Rows with problems: (records, row, field, severity, words of the message)

ROWS = {
    "blank prompt": ([PLAIN, PLAIN | {"prompt": "  "}], 2, "prompt", "error", "Row 2: prompt is blank. Fill"),
    "blank target": ([PLAIN | {"target": ""}], 1, "target", "error", "Row 1: target is blank. Fill"),
    "missing target": ([PLAIN, {"prompt": "B"}], 2, "target", "error", "target is missing"),
    "wrong type": ([PLAIN | {"target": {"a": 1}}], 1, "target", "error", "target holds an object where text"),
    "a list as prompt": ([PLAIN | {"prompt": ["a"]}], 1, "prompt", "error", "prompt holds a list"),
    "true as text": ([PLAIN | {"subject": True}], 1, "subject", "error", "subject holds true or false"),
    "lone surrogate": ([PLAIN | {"prompt": "a\ud800"}], 1, "prompt", "error", "half a character"),
    "NUL": ([PLAIN | {"target": "a\0"}], 1, "target", "error", "a NUL"),
    "answer too many": (
        [PLAIN | {"unrelated": "U", "unrelated_answer": "x || y"}],
        1,
        "unrelated_answer",
        "error",
        "holds 2 answer(s) for 1 prompt(s) in unrelated",
    ),
    "answer without prompt": (
        [PLAIN | {"unrelated": ["", "V"], "unrelated_answer": ["x", "y"]}],
        1,
        "unrelated",
        "error",
        "whose prompt in unrelated is blank",
    ),
    "duplicate": (
        [PLAIN, PLAIN | {"prompt": " The river  in Ulm is the ", "target": "iller"}],
        2,
        "prompt",
        "warning",
        "Row 2: the same prompt and target as row 1; this one was left out",
    ),
    "contradiction": (
        [PLAIN, PLAIN | {"prompt": "The river in  Ulm is the", "target": "Rhine"}],
        2,
        "target",
        "error",
        "Row 2: contradicts row 1: the same prompt with the targets “Iller” and “Rhine”. Delete one",
    ),
    "unknown column": ([PLAIN | {"notes": {"any": "thing"}}], 0, "notes", "warning", "not used: notes"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_problem_names_row_field_and_what_to_do(case):
    records, row, field, severity, words = ROWS[case]
    batch = parse_records(records, "the sheet")
    problem = only(batch)
    assert (problem.row, problem.field, problem.severity) == (row, field, severity)
    assert words in problem.message
    if severity == "error":
        assert batch.errors == (problem,) and not batch.warnings
        with pytest.raises(FactError, match=r"the sheet: 1 problem to mend first\.") as raised:
            batch.require()
        assert words in str(raised.value)
    else:
        assert batch.warnings == (problem,) and not batch.errors
        assert len(batch.require()) == 1


def test_rows_with_errors_make_no_fact_and_the_others_do():
    batch = parse_records([PLAIN, {"prompt": "", "target": ""} | {"subject": "S"}, PLAIN | {"prompt": "C"}], "x")
    assert [fact.row for fact in batch] == [1, 3]
    assert [(problem.row, problem.field) for problem in batch.errors] == [(2, "prompt"), (2, "target")]


def test_problems_come_in_the_order_of_the_rows():
    records = [PLAIN, PLAIN | {"notes": "n"}, PLAIN | {"prompt": ""}]
    assert [problem.row for problem in parse_records(records, "x").problems] == [0, 2, 3]


def test_a_duplicate_of_a_contradicting_fact_is_still_a_duplicate():
    batch = parse_records([PLAIN, PLAIN | {"target": "Rhine"}, PLAIN | {"target": "rhine"}], "x")
    assert [(problem.row, problem.severity) for problem in batch.problems] == [(2, "error"), (3, "warning")]
    assert "as row 2" in batch.problems[1].message


def test_prompts_that_differ_in_capitals_are_kept_with_a_warning():
    prompts = ["The word Polish means", "The word polish means", "The word polish means"]
    targets = ["from Poland", "shine", "to shine"]
    records = [{"prompt": prompt, "target": target} for prompt, target in zip(prompts, targets)]
    batch = parse_records(records[:2], "x")
    assert len(batch.require()) == 2
    assert str(only(batch)) == "Row 2: the prompt of row 1 but for capital letters; both were kept."
    assert only(batch).severity == "warning"
    assert "Row 3: contradicts row 2" in str(parse_records(records, "x").errors[0])


def test_a_long_list_of_errors_is_cut_but_counted():
    with pytest.raises(FactError, match="150 problems(?s:.*)Row 20:(?s:.*)and 130 more") as raised:
        parse_records([{"prompt": f"p{row}", "target": ""} for row in range(150)], "x").require()
    assert "Row 21:" not in str(raised.value)


def test_a_batch_without_a_fact_is_refused():
    with pytest.raises(FactError, match="the sheet: there is no fact in it"):
        parse_records([{"prompt": "", "target": ""}], "the sheet").require()
    with pytest.raises(FactError, match="the sheet: there is no record in it"):
        parse_records([], "the sheet")


def test_equivalent_prompts_become_facts_of_their_own_behind_all_others():
    first = Fact("A", "x", ("B", "C"), (("U", ""),), subject="S", old_target="y", row=3)
    second = Fact("D", "z", row=4)
    followers = [Fact(prompt, "x", subject="S", old_target="y", row=3) for prompt in ("B", "C")]
    assert with_equivalents([first, second]) == [first, second, *followers]


def test_an_unrelated_prompt_that_is_edited_is_named():
    own = PLAIN | {"unrelated": "the river in Ulm  is the || The river in Bonn is the"}
    problem = only(parse_records([own], "the sheet"))
    assert problem.severity == "warning" and problem.field == "unrelated" and problem.row == 1
    assert "“the river in Ulm is the” is edited in this row" in " ".join(problem.message.split())
    other = {"prompt": "The river in Bonn is the", "target": "Ahr"}
    told = parse_records([PLAIN | {"unrelated": other["prompt"]}, other], "the sheet")
    assert len(told) == 2 and "is edited in row 2" in only(told).message


def test_results_of_an_edit_are_not_facts():
    row = {"fact": "1", "type": "editing", "prompt": "A", "target": "b", "before": "c", "after": "b", "exact": "1"}
    with pytest.raises(FactError, match="facts.csv: these are an edit's results .* download its facts"):
        parse_records([row], "facts.csv")


def test_facts_are_told_apart_by_what_they_say_not_by_their_rows():
    facts = [Fact("The river in Ulm is the", "Iller", ("Through Ulm flows the",), row=1), Fact("A", "b", row=2)]
    moved = [replace(fact, row=9) for fact in facts]
    assert facts_sha256(facts) == facts_sha256(moved) != facts_sha256(facts[::-1])
    assert facts_sha256([replace(facts[0], target="Danube")]) != facts_sha256(facts[:1])
