"""`bedplate doctor`."""

from bedplate.cli.output import Json, print_json


def command(json: Json = False) -> None:
    """Say what this machine and installation can do, with a remedy for each thing wrong.

    \b
    Example:
      bedplate doctor
    """
    from bedplate.api.doctor import doctor

    report = doctor()
    if json:
        print_json(report)
        return
    width = max(len(check["name"]) for check in report["checks"])
    for check in report["checks"]:
        print(f"{'ok ' if check['ok'] else 'BAD'}  {check['name']:<{width}}  {check['value']}")
        if check["remedy"]:
            print(f"{'':{width + 7}}-> {check['remedy']}")
    wrong = sum(not check["ok"] for check in report["checks"])
    print(f"\n{wrong} to put right, marked BAD." if wrong else "\nAll is well.")
