"""Is this answer the gold? The cheap and exact questions first, computer algebra last and only within a budget."""

from __future__ import annotations

from functools import lru_cache

from rlspec.rlvr.grading.budget import MAX_LENGTH, check_budget
from rlspec.rlvr.grading.expression import Node, OverBudget, Unreadable, parse_expression
from rlspec.rlvr.grading.extract import extract_answer
from rlspec.rlvr.grading.forms import Form, balanced, read_form
from rlspec.rlvr.grading.plain import based_number, is_integer_ratio, plain_number, same_decimal
from rlspec.rlvr.grading.question import Prover, Question
from rlspec.rlvr.grading.units import units_conflict
from rlspec.rlvr.grading.verdict import ACCEPTED, Reason, Verdict

MAX_COMPARISONS = 200  # of elements, in unordered collections
_OPERATORS = (r"\int", r"\sum", r"\prod", r"\lim")


def grade_answer(answer: str, gold: str, *, prove: Prover | None = None) -> Verdict:
    """Compare a bare answer with a gold, in this process and without any time limit.

    Use `GraderPool` for anything a model wrote.

    Args:
        answer: text of the answer (what stood in the box).
        gold: the reference: a bare answer, a GSM8K solution with `####`, or a solution with a box.
        prove: the symbolic stage; None imports computer algebra when it is first needed.
    """
    reference = gold_text(gold)
    if reference is None:
        return Verdict.of("gold_unparseable", answer)
    return Verdict.of(_reason(answer.strip(), reference, prove or _prove), answer)


def grade_completion(completion: str, gold: str, *, thinking: bool, prove: Prover | None = None) -> Verdict:
    """Extract the final answer of a completion and compare it with a gold; see `extract_answer` and `grade_answer`."""
    found = extract_answer(completion, thinking=thinking)
    if found.text is None:
        return Verdict.of(found.fault or "no_box", None, found.boxes)
    verdict = grade_answer(found.text, gold, prove=prove)
    return Verdict(verdict.correct, verdict.reason, found.text, found.boxes)


@lru_cache(maxsize=1024)
def gold_text(gold: str) -> str | None:
    """The bare gold: after the last `####`, in the last box, or all; None if empty or its braces do not match."""
    _, marked, after = gold.rpartition("####")
    text = (after if marked else gold).strip()
    if not marked and "\\boxed" in text:
        text = (extract_answer(text, thinking=False).text or "").strip()
    return text if text and balanced(text) else None


def _prove(question: Question) -> Reason:
    from rlspec.rlvr.grading.symbolic import prove  # sympy: a second or two, once

    return prove(question)


def _reason(answer: str, gold: str, prove: Prover) -> Reason:
    if answer == gold:
        return "exact"
    if not balanced(answer):
        return "unparseable"
    if len(answer) > MAX_LENGTH or len(gold) > MAX_LENGTH:
        return "budget"
    try:
        return _Comparison(prove).forms(read_form(answer), _gold_form(gold))
    except OverBudget:
        return "budget"


@lru_cache(maxsize=1024)
def _gold_form(gold: str) -> Form:
    return read_form(gold)


class _Comparison:
    """One comparison of two forms, with its own budget of element comparisons."""

    def __init__(self, prove: Prover) -> None:
        self.prove = prove
        self.comparisons = 0

    def forms(self, answer: Form, gold: Form) -> Reason:
        """The reason for accepting or refusing."""
        self.comparisons += 1
        if self.comparisons > MAX_COMPARISONS:
            raise OverBudget("too many comparisons")
        if "equation" in (answer.kind, gold.kind):
            return self.equations(answer, gold)
        if "empty" in (answer.kind, gold.kind):
            return "unparseable"
        if "word" in (answer.kind, gold.kind):
            reason = _words(answer, gold)
            products = reason == "different" and _is_product(answer) and _is_product(gold)
            return self.scalars(answer, gold) if products else reason
        if answer.kind != gold.kind or answer.mark != gold.mark:
            return "different"
        if gold.kind == "scalar":
            return self.scalars(answer, gold)
        if len(answer.items) != len(gold.items):
            return "different"
        if gold.kind in ("set", "list", "union"):
            return self.unordered(answer, gold)
        return self.ordered(answer, gold)

    def ordered(self, answer: Form, gold: Form) -> Reason:
        for one, other in zip(answer.items, gold.items, strict=True):
            reason = self.forms(one, other)
            if reason not in ACCEPTED:
                return reason
        if gold.kind == "tuple":
            return "interval" if set(gold.mark) & {"[", "]"} else "tuple"
        return "matrix" if gold.kind == "matrix" else "relation"

    def unordered(self, answer: Form, gold: Form) -> Reason:
        """Match equal texts first, then whatever is equal; equality is transitive, so greedy is exact."""
        left = list(answer.items)
        open_golds = []
        for item in gold.items:
            if item in left:
                left.remove(item)
            else:
                open_golds.append(item)
        for item in open_golds:
            match = next((one for one in left if self.forms(one, item) in ACCEPTED), None)
            if match is None:
                return "different"
            left.remove(match)
        return "set" if gold.kind == "set" else "union" if gold.kind == "union" else "list"

    def scalars(self, answer: Form, gold: Form) -> Reason:
        reason = self.bodies(answer, gold)
        return "unit" if reason in ACCEPTED and units_conflict(answer.unit, gold.unit) else reason

    def bodies(self, answer: Form, gold: Form) -> Reason:
        if answer.tokens == gold.tokens:
            return "exact"
        answer_text, gold_text = answer.text, gold.text
        target = plain_number(gold_text)
        if target is not None:
            return _numbers(answer_text, gold_text)
        based = based_number(gold_text)
        if based is not None:
            return "exact" if based == based_number(answer_text) else "different"
        try:
            reference = parse_expression(list(gold.tokens))
            candidate = parse_expression(list(answer.tokens))
        except Unreadable:
            return "unparseable"
        if candidate == reference:
            return "symbolic"
        check_budget(reference)
        check_budget(candidate)
        return self.prove(Question(candidate, reference, answer_text, gold_text))

    def equations(self, answer: Form, gold: Form) -> Reason:
        """Both are equations, or one is and its left side is a name that can be dropped."""
        if answer.kind != gold.kind:
            whole, other = (answer, gold) if answer.kind == "equation" else (gold, answer)
            if not _is_name(whole.tokens):
                return "different"
            return self.forms(whole.items[0], other) if whole is answer else self.forms(other, whole.items[0])
        if answer.mark != gold.mark:
            return "different"
        if answer.tokens == gold.tokens:
            return self.forms(answer.items[0], gold.items[0])
        if gold.mark != "=" or answer.items[0].kind != "scalar" or gold.items[0].kind != "scalar":
            return "different"
        return self.proportional(answer, gold)

    def proportional(self, answer: Form, gold: Form) -> Reason:
        """Whether left minus right of both equations differ by a constant nonzero factor only."""
        try:
            one, other = _difference(answer), _difference(gold)
        except Unreadable:
            return "unparseable"
        check_budget(one)
        check_budget(other)
        reason = self.prove(Question(one, other, answer.text, gold.text, up_to_factor=True))
        return "equation" if reason == "symbolic" else reason


def _difference(equation: Form) -> Node:
    left, right = (parse_expression(list(side)) for side in (equation.tokens, equation.items[0].tokens))
    return Node("add", (left, Node("neg", (right,))))


def _numbers(answer: str, gold: str) -> Reason:
    """Compare with a plain gold."""
    value, target = plain_number(answer), plain_number(gold)
    if value is None or target is None:
        return "unparseable" if _unreadable(answer) else "unevaluated"
    if value == target:
        if is_integer_ratio(answer, value) and not is_integer_ratio(gold, target):
            return "unevaluated"
        return "decimal" if "." in answer + gold else "rational"
    return "decimal" if same_decimal(answer, value, gold, target) else "different"


def _unreadable(text: str) -> bool:
    from rlspec.rlvr.grading.normalize import tokenize

    if any(operator in text for operator in _OPERATORS):
        return False
    try:
        parse_expression(tokenize(text))
    except Unreadable:
        return True
    return False


def _words(answer: Form, gold: Form) -> Reason:
    """Words are compared letter by letter, without spaces; bare letters such as `AB` may be points: see `_spoken`."""
    if any(form.kind not in ("word", "scalar") or form.unit is not None for form in (answer, gold)):
        return "different"
    one, other = _letters(answer), _letters(gold)
    if one == other:
        return "exact"
    return "exact" if _spoken(answer, gold, one) and one.casefold() == other.casefold() else "different"


def _letters(form: Form) -> str:
    text = "".join(t[6:-1] if t.startswith("\\text{") else t for t in form.tokens)
    return text.replace(" ", "").rstrip(".")


def _spoken(answer: Form, gold: Form, letters: str) -> bool:
    r"""Whether case carries no meaning: two letters or more with a `\text{}` on a side, three or more without."""
    marked = "text" in (answer.mark, gold.mark)
    return len(letters) >= (2 if marked else 3)


def _is_product(form: Form) -> bool:
    """Whether a form is an expression, or one or two bare letters, which are a product as much as a word."""
    return form.kind == "scalar" or (form.kind == "word" and not form.mark and len(form.tokens) <= 2)


def _is_name(tokens: tuple[str, ...]) -> bool:
    """Whether the left side of an equation is only a name: `x`, `x_1`, `f(x)`, a text."""
    if len(tokens) == 4 and tokens[1] == "(" and tokens[3] == ")":
        return tokens[0].isalpha() and tokens[2].isalpha()
    if tokens[1:3] == ("_", "{") and tokens[-1] == "}":
        index = tokens[3:-1]
        return _is_letter(tokens[0]) and bool(index) and all(t.isascii() and t.isalnum() for t in index)
    return len(tokens) == 1 and (tokens[0].startswith("\\text{") or _is_letter(tokens[0]))


def _is_letter(token: str) -> bool:
    return (token.isalpha() and token.isascii()) or token[1:].isalpha()
