"""How losses, and differences between arms, depend on scale.

law.py        one arm: L = E + A / N^α + B / D^β, fitted to its runs
trend.py      two arms: their difference at each size, and beyond the largest one
answer.py     whether the difference holds, grows, shrinks or crosses zero
series.py     which runs of two arms form one ladder
frontier.py   of several sizes at each budget of FLOPs, the best one and its loss
rates.py      the learning rate at every size, from those that were tuned at some
check.py      a prediction that a larger rung has put to the test
ladders.py    all of this for the arms of a comparison
"""
