"""Is this answer the gold? The cheap and exact questions first, computer algebra last and only within a budget."""

from __future__ import annotations

from functools import lru_cache

from rlspec.rlvr.grading.budget import MAX_LENGTH, check_budget
from rlspec.rlvr.grading.expression import Node, OverBudget, Unreadable, is_constant, parse_expression
from rlspec.rlvr.grading.extract import extract_answer
from rlspec.rlvr.grading.forms import Form, aligned, balanced, letters_of, read_form
from rlspec.rlvr.grading.names import is_name
from rlspec.rlvr.grading.plain import based_number, is_decimal, is_integer_ratio, plain_number, same_decimal
from rlspec.rlvr.grading.question import Prover, Question
from rlspec.rlvr.grading.regions import region
from rlspec.rlvr.grading.typed import settle
from rlspec.rlvr.grading.units import units_conflict
from rlspec.rlvr.grading.values import CLEARLY, UNDEFINED, value
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
    if is_decimal(answer) and is_decimal(gold):
        return _numbers(answer, gold)
    if not balanced(answer):
        return "unparseable"
    if len(answer) > MAX_LENGTH or len(gold) > MAX_LENGTH:
        return "budget"
    try:
        return _Comparison(prove).forms(read_form(settle(answer, gold)), _gold_form(settle(gold, answer)))
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
            products = reason == "different" and _are_products(answer, gold)
            return self.scalars(answer, gold) if products else reason
        if "set" in (answer.kind, gold.kind) and answer.kind != gold.kind:
            answer, gold = _element_of(answer, gold), _element_of(gold, answer)
        if "named" in (answer.kind, gold.kind):
            return self.named(answer, gold)
        if _is_collection(answer) and _is_collection(gold):
            return self.unordered(answer, gold)
        if answer.kind == gold.kind == "relation":
            return self.relations(answer, gold)
        if answer.kind == gold.kind == "scalar":
            return self.scalars(answer, gold)
        one, other = region(answer) or answer, region(gold) or gold
        if one.kind != other.kind or one.mark != other.mark or len(one.items) != len(other.items):
            return "different"
        return self.unordered(one, other) if other.kind in ("union", "list") else self.ordered(one, other)

    def ordered(self, answer: Form, gold: Form) -> Reason:
        for one, other in zip(answer.items, gold.items, strict=True):
            reason = self.forms(one, other)
            if reason not in ACCEPTED:
                return reason
        if gold.kind in ("tuple", "named", "list"):
            return "interval" if set(gold.mark) & {"[", "]"} else "tuple"
        return "matrix" if gold.kind == "matrix" else "relation"

    def unordered(self, answer: Form, gold: Form) -> Reason:
        """Match equal texts first, then whatever is equal; equality is transitive, so greedy is exact."""
        left, wanted = list(answer.items), gold.items
        if len(left) != len(wanted) or any(item.kind == "equation" for item in left) != any(
            item.kind == "equation" for item in wanted
        ):
            return "different"
        open_golds = []
        for item in wanted:
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

    def named(self, answer: Form, gold: Form) -> Reason:
        """Several named values: by name, and with unnamed ones in the order of writing (see `order_of`)."""
        if answer.kind == gold.kind:
            one = aligned(answer, gold)
            return "different" if one is None else self.ordered(one, gold)
        bare = gold if answer.kind == "named" else answer
        listed = bare.kind == "list" or (bare.kind, bare.mark) == ("tuple", "()")
        if not listed or len(answer.items) != len(gold.items) or any(item.kind == "equation" for item in bare.items):
            return "different"
        return self.ordered(answer, gold)

    def relations(self, answer: Form, gold: Form) -> Reason:
        """The same chain, or, where the gold is not solved for a name, a positive multiple of its one inequality."""
        if answer.mark != gold.mark or len(answer.items) != len(gold.items):
            return "different"
        reason = self.ordered(answer, gold)
        solved = any(is_name(item.tokens) for item in gold.items)
        if reason in ACCEPTED or solved or len(gold.items) != 2 or any(i.kind != "scalar" for i in gold.items):
            return reason
        return self.proportional(answer, gold, "relation") if _same_direction(answer, gold) else "different"

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
            if not is_name(whole.tokens) or other.kind == "named":
                return "different"
            return self.forms(whole.items[0], other) if whole is answer else self.forms(other, whole.items[0])
        if answer.mark != gold.mark:
            return "different"
        if answer.tokens == gold.tokens:
            return self.forms(answer.items[0], gold.items[0])
        if gold.mark != "=" or answer.items[0].kind != "scalar" or gold.items[0].kind != "scalar":
            return "different"
        if is_name(gold.tokens) and is_constant(gold.items[0].tokens):
            return "different" if is_name(answer.tokens) else "unevaluated"  # `2x=10` for `x=5`
        return self.proportional(answer, gold, "equation")

    def proportional(self, answer: Form, gold: Form, accepted: Reason) -> Reason:
        """Whether left minus right of both differ by a constant nonzero factor only."""
        try:
            one, other = _difference(answer), _difference(gold)
        except Unreadable:
            return "unparseable"
        check_budget(one)
        check_budget(other)
        reason = self.prove(Question(one, other, answer.text, gold.text, up_to_factor=True))
        return accepted if reason == "symbolic" else reason


def _is_collection(form: Form) -> bool:
    return form.kind == "set" or (form.kind == "list" and not form.mark)


def _element_of(form: Form, other: Form) -> Form:
    """The one element of a set that is compared with something that has no elements."""
    alone = form.kind == "set" and len(form.items) == 1 and form.items[0].tokens != (r"\emptyset",)
    return form.items[0] if alone and not _is_collection(other) else form


def _sides(form: Form) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if form.kind == "equation":
        return form.tokens, form.items[0].tokens
    return form.items[0].tokens, form.items[1].tokens


def _same_direction(answer: Form, gold: Form) -> bool:
    """Whether the factor between two inequalities is positive (or they are no inequalities)."""
    if gold.mark == r"\neq":
        return True
    try:
        ratio = complex(value(_difference(answer), 0) / value(_difference(gold), 0))
    except UNDEFINED:
        return False
    return ratio.real > 0 and abs(ratio.imag) < CLEARLY


def _difference(form: Form) -> Node:
    left, right = (parse_expression(list(side)) for side in _sides(form))
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
    one, other = letters_of(answer.tokens), letters_of(gold.tokens)
    if one == other:
        return "exact"
    return "exact" if _spoken(answer, gold, one) and one.casefold() == other.casefold() else "different"


def _spoken(answer: Form, gold: Form, letters: str) -> bool:
    r"""Whether case carries no meaning: two letters or more with a `\text{}` on a side, three or more without."""
    if letters.casefold() == "no":
        return True
    marked = "text" in (answer.mark, gold.mark)
    return len(letters) >= (2 if marked else 3)


_SHORT_WORDS = frozenset(
    "am an as at be by do go he hi if in is it me my no of oh ok on or so to up us we iv ix vi xi xv".split()  # noqa: SIM905
)


def _are_products(one: Form, other: Form) -> bool:
    """Whether both may be products, whose factors commute: `IV`, `NE` and `on` are read in their order."""
    if not (_is_product(one) and _is_product(other)):
        return False
    if one.kind != other.kind or len(one.tokens) < 2:
        return True
    words = ("".join(form.tokens) for form in (one, other))
    return all(word.islower() and word not in _SHORT_WORDS for word in words)


def _is_product(form: Form) -> bool:
    """Whether a form is an expression, or one or two bare letters, which are a product as much as a word."""
    return form.kind == "scalar" or (form.kind == "word" and not form.mark and len(form.tokens) <= 2)
