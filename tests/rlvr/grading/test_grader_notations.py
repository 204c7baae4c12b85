"""Notations beside plain TeX: what people type, units, names, intervals; each accepted one with its near misses."""

from __future__ import annotations

import pytest

from rlspec.rlvr.grading import equivalents, grade_answer, mutate

# Two spellings of one answer: each is accepted where the other is the gold.
SAME = [
    ("9", "$9$ hours"),
    ("125", "$125$ miles"),
    ("241920000", "$241,920,000$ cans"),
    ("5€", "5"),
    ("£5", "5"),
    ("5 m/s", "5"),
    (r"5^\circ C", "5"),
    ("5", r"5^\circ C"),
    ("5", "5€"),
    ("5", "£5"),
    ("5", "5 m/s"),
    (r"\frac12", r"$\frac{1}{2}$ hours"),
    (r"2\sqrt{3} cm", r"2\sqrt{3}"),
    ("5 cm^2", "5"),
    ("5 km/h", "5"),
    ("5°C", "5"),
    (r"4.5\times10^{33}", "4.5e33"),
    ("4.5e33", r"4.5\times10^{33}"),
    (r"4.5 \times 10^{33}", "4.5E+33"),
    ("1e-5", "0.00001"),
    ("0.002", "2e-3"),
    (r"2\times10^{-3}", "2e-3"),
    ("-3+2e", "2e-3"),
    ("4.5 x 10^33", "4.5e33"),
    (r"4.5\cdot{10}^{33}", "4.5e33"),
    ("x<3", r"(-\infty,3)"),
    (r"(-\infty,3)", "x<3"),
    ("0<x<12.5", "(0,12.5)"),
    ("(0,12.5)", "0<x<12.5"),
    (r"(-\infty,3]", r"x\le 3"),
    (r"x \in (-\infty,3]", r"x\le 3"),
    (r"x<1 \text{ or } x>3", r"(-\infty,1)\cup(3,\infty)"),
    (r"(-\infty,1)\cup(3,\infty)", "x<1 or x>3"),
    ("x!=3", r"(-\infty,3)\cup(3,\infty)"),
    (r"\{1,2\}", "1,2"),
    ("1,2", r"\{1,2\}"),
    ("(x,y)=(5,8)", "(5,8)"),
    ("(5,8)", "(x,y)=(5,8)"),
    ("x=5,y=8", "(5,8)"),
    ("y=8,x=5", "(x,y)=(5,8)"),
    ("AB=5", "5"),
    (r"\angle ABC=60^\circ", "60"),
    ("60", r"\angle ABC=60^\circ"),
    ("x<=2", r"x\le2"),
    ("x!=3", r"x\neq 3"),
    ("-x>-1", "x<1"),
    ("x<1", "-x>-1"),
    ("1 and 2", "1,2"),
    ("x=1 or x=2", "1,2"),
    ("1,2", "x=1 or x=2"),
    ("19, 46, and 82", r"19, 46, \text{ and } 82"),
    ("19,46,82", "19, 46, and 82"),
    (r"\begin{array}{cc}1&2\\3&4\end{array}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\left(\begin{array}{c}1\\2\end{array}\right)", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\left[\begin{array}{c}1\\2\end{array}\right]", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("2 3/4", r"\frac{11}{4}"),
    ("11/4", "2 3/4"),
    ("1，2", "1,2"),
    ("（1，2）", "(1,2)"),
    (r"\mathbb R", r"(-\infty,\infty)"),
    (r"(-\infty,\infty)", r"\mathbb R"),
    ("pi/2", r"\frac{\pi}{2}"),
    ("-2*pi", r"-2\pi"),
    ("-1 + exp(16)", "e^{16}-1"),
    ("14.0 + -1.0i", "14-i"),
    (r"\{1,2\}\cup\{3\}", r"\{1,2,3\}"),
    ("ab+cd", "cd+ab"),
    ("ba+dc", "ab+cd"),
    ("2yx+z", "z+2xy"),
    ("xy+yz+zx", "zx+xy+yz"),
    ("sqrt(2)/2", r"\frac{\sqrt2}{2}"),
    ("x**2+1", "x^2+1"),
    ("2^(x+1)", "2^{x+1}"),
    ("**73**", "73"),
    ("n=2,3,4", "2,3,4"),
    ("x=1,2", "x=1 or x=2"),
    ("5=x", "x=5"),
    ("x > 1 and x < 3", "1<x<3"),
    (r"\{x \mid x<3\}", "x<3"),
    (r"\{x : x<3\}", r"(-\infty,3)"),
    ("60 mph", r"60\text{ miles per hour}"),
    ("x=1,y=2", "x=1,y=2"),
    ("y=2,x=1", "x=1,y=2"),
    ("1,2", "x=1,y=2"),
    ("6", "６"),
    (r"\text{all real numbers}", r"\mathbb{R}"),
    (r"4\sqrt(2)", r"4\sqrt2"),
    ("3:4", "3 : 4"),
    (r"x\in\mathbb{R}", r"(-\infty,\infty)"),
    (r"\pm 2", "2,-2"),
    (r"x=\pm 2", "2,-2"),
    ("1;2", "1,2"),
    ("(-inf, 3)", "x<3"),
    (r"\mathbb{R}\setminus\{3\}", r"x\neq3"),
    ("x>0", r"(0,+\infty)"),
    (r"m\angle A = 60", "60"),
    (r"\overline{AB}=5", "5"),
    ("|AB|=5", "5"),
    ("[ABC]=12", "12"),
    ("P(A)=0.5", "0.5"),
    ("f(2)=7", "7"),
    ("a:b=3:4", "3:4"),
]

# Two answers: neither is accepted for the other.
DIFFERENT = [
    ("2,1", "x=1,y=2"),
    ("x=1,y=2", "2,1"),
    ("y=2,x=1", "(2,1)"),
    ("x=2,y=1", "x=1,y=2"),
    ("(y,x)=(5,8)", "(5,8)"),
    ("x<3", r"(3,\infty)"),
    (r"x\le 3", r"(-\infty,3)"),
    ("0<x<12.5", "[0,12.5)"),
    ("0<x<12.5", "(12.5,0)"),
    ("12.5<x<0", "(12.5,0)"),
    ("x>3", r"(-\infty,3)"),
    (r"x<1 \text{ and } x>3", r"x<1 \text{ or } x>3"),
    (r"x<1 \text{ or } x>3", "(1,3)"),
    ("x=1 or y=2", "1,2"),
    ("x=1 or x=3", "1,2"),
    ("(1,2)", "1,2"),
    ("(1,2)", r"\{1,2\}"),
    ("4.5e32", "4.5e33"),
    ("4.5e-33", "4.5e33"),
    ("4.5", "4.5e33"),
    ("2 3/4", "23/4"),
    ("2 3/4", "6/4"),
    ("-x>1", "x<1"),
    ("-x<-1", "x<1"),
    ("5 km/h", "5 m/s"),
    (r"5\text{ km/h}", r"5\text{ m/s}"),
    ("£5", "5€"),
    (r"5^\circ C", r"5^\circ F"),
    ("5€", r"\$5"),
    ("5 m/s^2", "5 m/s"),
    (r"\{1,2\}", "1,3"),
    (r"\{1\}", "1,2"),
    ("1 and 2", "1"),
    ("x!=3", "x=3"),
    ("AB=5", "BC=5"),
    (r"\mathbb R", r"(0,\infty)"),
    (r"\mathbb Q", r"(-\infty,\infty)"),
    (r"\begin{array}{cc}1&2\\3&4\end{array}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    ("-1 + exp(15)", "e^{16}-1"),
    ("14.0 + 1.0i", "14-i"),
    ("pi/3", r"\frac\pi2"),
    (r"\{1,2\}\cup\{4\}", r"\{1,2,3\}"),
    ("ab+cd", "ac+bd"),
    ("abx=5", "5"),
    ("2x=5", "5"),
    ("a+b=5", "5"),
    ("0.002", "-3+2e"),
    ("1:05", "1:5"),
    ("6:8", "3:4"),
    ("12:00", "1:00"),
    ("x<3", "y<3"),
    ("x=1,2", "x=1,3"),
    ("5!=120", r"5\neq 120"),
    ("x=5", "x<5"),
    (r"\{x \mid x<3\}", "x>3"),
    ("3", "x<3"),
    ("3", "x!=3"),
    ("72 or 73", "72"),
    ("n=1,2,3", "n=2,3,4"),
]

# The question's own equation or inequality is no answer to it, but its solution is equal to it.
UNSOLVED = [
    ("2x=10", "x=5"),
    ("x-5=0", "x=5"),
    ("3x+2<5", "x<1"),
    ("-2x>-2", "x<1"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_both_spellings_are_accepted_for_each_other(one: str, other: str) -> None:
    assert grade_answer(one, other).correct is True
    assert grade_answer(other, one).correct is True


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_near_misses_are_refused_whichever_is_the_gold(one: str, other: str) -> None:
    assert grade_answer(one, other).correct is False
    assert grade_answer(other, one).correct is False


@pytest.mark.parametrize(("answer", "gold"), UNSOLVED)
def test_an_unsolved_equation_or_inequality_is_no_answer_to_a_solved_gold(answer: str, gold: str) -> None:
    assert grade_answer(answer, gold).correct is False


GOLDS = [
    "x<3",
    "0<x<12.5",
    r"(-\infty,3]",
    r"(-\infty,1)\cup(3,\infty)",
    r"\{1,2\}",
    "1,2,3",
    "(5,8)",
    "4.5",
    "0.002",
    r"\frac{11}{4}",
    r"\frac{\pi}{2}",
    "14-i",
    "e^{16}-1",
    "2ab+3cd",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    "72",
    r"5\text{ m/s}",
    r"\$5",
    r"60^\circ",
]


@pytest.mark.parametrize("gold", GOLDS)
def test_every_notation_of_a_gold_is_accepted_and_every_falsified_one_refused(gold: str) -> None:
    same, wrong = equivalents(gold), mutate(gold)
    assert len(same) > 3
    assert len(wrong) > 4
    assert [one for one in same if grade_answer(one.answer, gold).correct is not True] == []
    assert [one for one in wrong if grade_answer(one.answer, gold).correct is not False] == []
