"""Telling a person that a job has ended, as `defaults.job.notifications` says."""

from __future__ import annotations

import sys


def notify(text: str) -> None:
    """Send a line to Slack, by mail, or to nobody; a failure is a warning, never an error."""
    from loomos.settings import load_settings

    wishes = load_settings().defaults.job.notifications
    if wishes.slack_webhook is not None:
        _warn_if("Slack", _post(wishes.slack_webhook.get_secret_value(), text))
    if wishes.email:
        _warn_if("mail", _mail(text))


def _post(url: str, text: str) -> str:
    import httpx

    try:
        return "" if httpx.post(url, json={"text": text}, timeout=10).is_success else "refused"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__


def _mail(text: str) -> str:
    import getpass
    import os
    import shutil
    import subprocess

    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    program = shutil.which("sendmail", path=path)
    if program is None:
        return "this machine has no sendmail"
    message = f"To: {getpass.getuser()}\nSubject: {text}\n\n{text}\n"
    done = subprocess.run([program, "-t"], input=message.encode(), capture_output=True, check=False)
    return "" if done.returncode == 0 else f"sendmail ended with {done.returncode}"


def _warn_if(way: str, failure: str) -> None:
    if failure:
        print(f"warning: no notification by {way}: {failure}", file=sys.stderr)
