"""Inputs from public reports on other graders; each is judged as its reporter expected."""

from __future__ import annotations

import pytest

from rlspec.rlvr.grading import grade_answer, grade_completion

# (report, answer, gold, is the answer right?)
REPORTS = [
    ("Math-Verify #14", "1/2006!", r"\frac{1}{2004!}", False),
    ("Math-Verify #14", r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}", False),
    ("Math-Verify #14", "n=1, 2, 3", "n=2, 3, 4", False),
    ("Math-Verify #14", "D = (0, 1.5)", "D = (0, 1)", False),
    ("Math-Verify #14", r"F_n = \sum_{k=0}^{n-2} F_k F_{n-k-2}", r"F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1}", False),
    ("Math-Verify #14", "21, 36, and 82", r"19, 46, \text{ and } 82", False),
    ("Math-Verify #14", r"\frac{1}{3 \cdot 2^{2006}}", r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", False),
    ("Math-Verify #14", r"1 + \frac{1}{\mathrm{e}}", r"1 - \frac{1}{\mathrm{e}}", False),
    ("Math-Verify #14", "2021", r"\pm 2021", False),
    ("Math-Verify #14", "1:00", "12:00", False),
    ("Math-Verify #14", r"1, 3, 5, \ldots, 2n-1", r"1, 2, \ldots, n", False),
    ("Math-Verify #14", r"1:4:9:\ldots", r"1:2:3:\ldots", False),
    ("Math-Verify #60", "3x + 4y + 14=0", "3*x-1*y+13=0", False),
    ("Math-Verify #69", "-1 + exp(16)", "e^{16} - 1", True),
    ("Math-Verify #69", "pi/2", r"\dfrac{\pi}{2}", True),
    ("Math-Verify #69", "14.0 + -1.0i", "14 - i", True),
    ("Math-Verify #69", "-2*pi", r"-2\pi", True),
    ("Math-Verify #69", "Theta(log log n)", r"O(\log \log n)", False),
    ("Math-Verify #76", "**73**", "73", True),
    ("Math-Verify #41", r"4\sqrt(2)", "4", False),
    ("Math-Verify #41", r"4\sqrt(2)", r"4\sqrt{2}", True),
    ("Math-Verify #37", r"\text{13}", "13", True),
    ("Math-Verify #64", r"\frac{1}{\sqrt{n}}", r"\sqrt{1/n}", True),
    ("Math-Verify #44", "004", "4", True),
    ("Math-Verify #10", "0 < x < 12.5", "(0, 12.5)", True),
    ("Math-Verify #10", "(0, 12.5)", "0 < x < 12.5", True),
    ("Math-Verify #49", r"-2 \le x \le 7", r"x \in [-2,7]", True),
    ("lighteval #584", "６", "6", True),
    ("Qwen2.5-Math #29", r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)", True),
    ("Math-Verify #82", r"1 + \frac{1}{\mathrm{e}}", r"1 - \frac{1}{\mathrm{e}}", False),
    ("Math-Verify #65", r"\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}", "42", False),
    ("sieval #26", "3", "n=3k", False),
    ("Math-Verify #2", "(1,4.5)", r"(1,\frac{9}{2})", True),
    ("Math-Verify #2", r"\frac{x}{7}+\frac{2}{7}", r"\frac{x+2}{7}", True),
    ("Math-Verify #2", r"\sec^2(y)", r"\tan^2(y)+1", True),
    (
        "Math-Verify #2",
        r"\begin{pmatrix}-\frac{7}{4}&-2\\4&\frac{1}{4}\end{pmatrix}",
        r"(\begin{pmatrix}-\frac{7}{4}&-2\\4&\frac{1}{4}\\\end{pmatrix})",
        True,
    ),
    ("Math-Verify #2", "-34x-45y+20z-100=0", "34x+45y-20z+100=0", True),
    ("Math-Verify #40", r"\frac{x^2}{4}+\frac{y^2}{3}=1", r"\frac{x^2}{16}+\frac{y^2}{12}=1", False),
    ("Math-Verify #67", "28", r"28\%", True),
    ("Math-Verify #67", "28 percent", r"28\%", True),
    ("ms-swift #4541", r"a=1 \text{ or } a=-2", "1,-2", True),
    ("Qwen2.5-Math #50", "1,-3", "1,-2", False),
    ("lm-evaluation-harness #4030", "[2,5)", "[2,5)", True),
    ("lm-evaluation-harness #3785", "52", "52_8", False),
    ("lm-evaluation-harness #3785", "3,2,1", "1,2,3", True),
    ("MathRuler #2", r"\pi \div 8 + 1 \div 2", r"0.5 + \frac{\pi}{8}", True),
    ("open-r1 #566", r"\frac{64}{400}", r"\frac{63}{400}", False),
    ("open-r1 #503", "10 - 2√5", r"10 - 2\sqrt{5}", True),
]
COMPLETIONS = [
    ("Math-Verify #44", r"therefore\boxed{840}.,but let me explain. **Final Answer**\boxed{840}", "840", True),
    ("Math-Verify #44", r"\boxed{004}. The sum is 2,552,004. **Final Answer**\boxed{004}", "4", True),
    ("marin #9163", r"\boxed{5} then \boxed{6", "5", False),
    ("miles #342", r"<think>\boxed{5}", "5", False),
]


@pytest.mark.parametrize(("report", "answer", "gold", "right"), REPORTS)
def test_an_answer_from_a_public_report(report: str, answer: str, gold: str, right: bool) -> None:
    assert grade_answer(answer, gold).correct is right, report


@pytest.mark.parametrize(("report", "completion", "gold", "right"), COMPLETIONS)
def test_a_completion_from_a_public_report(report: str, completion: str, gold: str, right: bool) -> None:
    assert grade_completion(completion, gold, thinking=False).correct is right, report


@pytest.mark.parametrize("gold", ["", r"\frac{1}{", "}"])
def test_a_gold_that_cannot_be_read_pays_nobody(gold: str) -> None:
    """open-r1 #293 and cookbook #335: there every answer got the full reward."""
    assert grade_answer("anything", gold).correct is None
