"""What Kubernetes does to texts and names on their way into a container."""

from stagjax.errors import UserError

CONTAINER = "stagjax"
SECRET_VOLUME = "run-secret"


def literal(text: str) -> str:
    """Return what a container's command, argument or variable must say so that the container gets `text`.

    There Kubernetes replaces $(NAME), and writes `$` for `$$`.

    Raises:
      UserError: a text that is no Unicode, which a manifest cannot hold.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text!r} is not UTF-8, and a manifest holds nothing else; give it in a file") from None
    return text.replace("$", "$$")


def check_generated(name: str, generated: dict[str, tuple[str, int]]) -> None:
    """Raise `UserError` where a name that is made from --name would be longer than what carries it admits.

    Args:
      name: as the user gave it.
      generated: what is named, to what follows the user's name, and the most characters.
    """
    for what, (rest, longest) in generated.items():
        if len(name) + len(rest) > longest:
            fits = min(most - len(other) for other, most in generated.values())
            raise UserError(
                f"--name={name}: {what} would be called {name}{rest}, and such a name ends at {longest} characters; "
                f"use a --name of at most {fits}"
            )
