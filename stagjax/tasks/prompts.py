"""How examples and questions are joined into a prompt: a space before an answer, a blank line after an example."""

ANSWER = " "
EXAMPLE = "\n\n"


def example(question: str, answer: str, before_answer: str = ANSWER) -> str:
    """Return an example of a few-shot prompt, ready to be followed by the next.

    An empty answer leaves the bare question, without the blank line: what the harness does where an answer is a text.
    """
    return f"{question}{before_answer}{answer}{EXAMPLE}" if answer else question
