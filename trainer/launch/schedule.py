"""Validation of cron schedules for both Kubernetes and Cloud Scheduler."""

from __future__ import annotations

import re

from cronsim import CronSim, CronSimError

from trainer.errors import UsageError


def check_schedule(schedule: str, time_zone: str) -> None:
    """Raise UsageError for a schedule that never fires or is not valid on both platforms."""
    from datetime import datetime
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

    try:
        zone = ZoneInfo(time_zone)
        if time_zone not in available_timezones() - {"localtime", "posixrules", "Factory"}:
            raise ZoneInfoNotFoundError(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            "There is no such time zone; they are called Etc/UTC or America/Sao_Paulo.",
            received=f"{time_zone!r}",
        ) from None
    try:
        _check_fields(schedule)
        next(CronSim(schedule, datetime.now(zone)))
    except (CronSimError, StopIteration) as error:
        raise UsageError(
            "A schedule has cron's five fields: minute, hour, day, month and day of the week, as 0 3 * * 1.",
            received=f"{schedule!r}{f', {error}' if str(error) else ', which never comes'}",
        ) from None


def _check_fields(schedule: str) -> None:
    """Raise CronSimError for fields that Kubernetes or Cloud Scheduler rejects or interprets differently."""
    fields = schedule.split()
    if len(fields) != len(["minute", "hour", "day", "month", "weekday"]):
        raise CronSimError("it has another number of fields")
    names = [r"\d+"] * 3 + [r"(\d+|[A-Za-z]{3})", r"([0-6]|[A-Za-z]{3})"]
    for field, name in zip(fields, names, strict=True):
        part = rf"(\*|{name}(-{name})?)(/\d+)?"
        if not re.fullmatch(rf"{part}(,{part})*", field):
            raise CronSimError(f"{field} is none of a number, a range, a list or *; Sunday is 0")
