"""Every option of the verifier in one documented record; the Python interface, CLI and config file are views of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from curvverify.errors import UsageError


def option(default, help: str):
    """A field with the sentence that documents it everywhere."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Options:
    """How a query is decided. No option can make a verdict unsound: they trade time for strength."""

    timeout: float = option(300.0, "wall-clock seconds; the command line counts from the start of the process")
    seed: int = option(0, "seed of every random choice; the same seed gives the same search")
    threads: int = option(0, "CPU threads for tensor arithmetic; 0 takes what the machine has")
    memory: float = option(8.0, "GiB that one bound computation may take; larger ones are cut into pieces")
    attack_seconds: float = option(4.0, "longest falsification burst")
    attack_rounds: int = option(8, "rounds of new starts for what bounds leave open; the first burst is one round")
    attack_starts: int = option(32, "random starts per burst and disjunct, beside the centre and corners")
    refine_iterations: int = option(
        8, "most Frank-Wolfe iterations for intermediate nodes (1, 3, these if not coupled)"
    )
    coupling: bool = option(True, "bound the curvature of many activations together where single bounds do not suffice")
    coupling_iterations: int = option(5, "Frank-Wolfe iterations for intermediate nodes of coupled bounds")
    coupling_inputs: int = option(12, "most free inputs for which nothing is coupled: splitting them is better")
    coupling_levels: int = option(8, "most levels of activations that are coupled, from the input on")
    property_iterations: int = option(6, "Frank-Wolfe iterations for the rows of the property, at least")
    branch: bool = option(True, "split what stays open")
    branch_inputs: int = option(64, "most free inputs for which the input is split; above, activations and directions")
    box_inputs: int = option(12, "most free inputs for which curved networks are bounded on thousands of boxes at once")
    branch_batch: int = option(256, "largest number of subproblems bounded at once")

    def __post_init__(self) -> None:
        """Refuse values that make no sense: UsageError names the option."""
        positive = ("timeout", "memory", "attack_seconds")
        for name, value in vars(self).items():
            low = 1 if name.endswith(("_iterations", "_batch", "_starts")) else 0
            if not value > 0 if name in positive else not value >= low:
                wanted = "above 0" if name in positive else f"at least {low}"
                raise UsageError(f"option {name} is {value}: it must be {wanted}")
