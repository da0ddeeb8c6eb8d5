# ruff: noqa: E501 (a row of a table is a line)
"""What stands word for word in several chapters: the folded card of letters, and the table of the four onlookers.

A notebook repeats such a text in a markdown cell of its own; tests/test_prose.py holds them equal.
"""

ALPHABET = r"""<details><summary>The letters of this course (the same in all chapters)</summary>

| letter | meaning |
|---|---|
| $x$ | the prompt |
| $y = y_1 \dots y_L$ | the tokens of a picture, one for each of its $L$ places |
| $s = 1 \dots T$ | the steps, always counted from 1 |
| $z_s$ | the state after step $s$: some places committed, the others hidden |
| $m_s$ | how many places are still hidden after step $s$ |
| $\hat y_s$ | the guess at step $s$: a whole picture, committed places and a sample everywhere else |
| $g$ | guidance, how much the prompt is exaggerated |
| $\tau$ | the noise of re-masking: how much chance helps to choose what is kept |
| $J(x, y) \in \{0, 1\}$ | the judge's verdict; $p = P(J = 1)$ |
| $\ell$ | a verifier's log-odds of yes; $\sigma$ is the logistic function, so $P(\text{yes}) = \sigma(\ell)$ |
| $V_s = P(J = 1 \mid z_s)$ | the chance to end right from state $z_s$ |
| $N$, $n$, $k$ | a pool's size; the candidates chosen among; the right ones |
| $\pi_\theta$, $\pi_{\text{ref}}$, $\beta$, $\Delta$ | the generator that learns; its frozen reference; how strongly it is held there; a pair's margin |
| $\lambda$ | the weight of a guide |
| $\eta$, $s_0$ | PARM's cut, and the first step at which it may stop a path |
| $G$, $R$, $A$ | a group, its rewards, its advantages |
| $c_g$, $c_v$ | what one pass of the generator and one of the verifier cost |

A place is **committed** when the schedule has fixed its token; it is **final** when its guess already equals the token
that it will have in the end. A place may be final long before it is committed.
</details>"""

ONLOOKERS = """| onlooker | what it sees | what it learned from | where it appears |
|---|---|---|---|
| **verifier** | prompt and picture | pictures with questions and answers; later also labels of the training judge | when pictures are chosen: it may be used at test time |
| **training judge** | picture, and the record of what must be there | nothing: it compares with the icons themselves (the *template* judge) | labels for training, and nowhere else |
| **reporting judge** | picture, and the record | clean and rebuilt scenes whose contents are known (the *learned* judge) | scores in tables, and nowhere else |
| **oracle** | all candidates and the reporting judge's verdicts | nothing: it is the reporting judge, choosing | a bound in figures: what a perfect verifier would reach |"""
