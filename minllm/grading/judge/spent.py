"""What asking a judge has cost so far."""

from dataclasses import dataclass


@dataclass
class Spent:
    """Counts since a judge was built, which is once per command.

    requests: that were made, repeated ones included
    tokens_in: of questions, as counted by the judge
    tokens_out: of replies
    has_replied: the judge has replied to some question with these settings, now or in an earlier command
    """

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    has_replied: bool = False
