"""Dates, periods and durations as times of ``ar1(t | g)`` and positions of ``exp(pos | g)``.

Their values become text, the levels of a column of the design's own, so that recipes and files
hold nothing but text; and numbers, which distances are taken of.

A time with a zone is what its clock shows there, so that days are equal steps when clocks change;
where two instants show the same, all are taken in UTC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, listing
from flashmm.formulas.column_kinds import kind_of

__all__ = ["Times", "TimesKind", "as_times", "check_zone", "is_time", "text_of_times"]

TimesKind = Literal["date", "duration", "period"]

_KINDS: dict[str | None, TimesKind] = {
    "dates or times": "date",
    "durations": "duration",
    "periods": "period",
}
_DAY = 86_400 * 10**9  # nanoseconds
_ZONE = re.compile(r"[A-Za-z0-9_+\-/:]{1,64}")
# Units of time in nanoseconds, and the names of periods by the first letters of their frequency.
_UNITS = ((_DAY, "day"), (3600 * 10**9, "hour"), (60 * 10**9, "minute"), (10**9, "second"))
_PERIODS = {
    **{"M": "month", "ME": "month", "Q": "quarter", "QE": "quarter", "W": "week", "D": "day"},
    **{"A": "year", "Y": "year", "YE": "year", "B": "business day", "H": "hour", "h": "hour"},
    **{"T": "minute", "min": "minute", "S": "second", "s": "second"},
    **{"ms": "millisecond", "L": "millisecond", "us": "microsecond", "U": "microsecond"},
    **{"ns": "nanosecond", "N": "nanosecond"},
}


@dataclass(frozen=True)
class Times:
    """A column of times.

    Parameters
    ----------
    kind
        ``"date"``, ``"duration"`` or ``"period"``.
    values
        The different ones, ascending: an index of pandas, dates without a zone.
    text
        Each sample's as text, a categorical whose categories are those of ``values``.
    zone
        The zone whose clock the dates are of; empty without one.
    """

    kind: TimesKind
    values: Any
    text: pd.Categorical
    zone: str

    def distances_of(self, structure: str, column: str, source: str) -> tuple[FloatArray, str]:
        """Positions of the different times, and the unit that distances are in.

        Of ``"exp"`` days, periods of periods; of ``"ar1"`` steps of the smallest lag: months where
        dates are of one day of the month, or the last of theirs.

        Raises
        ------
        InputError
            If lags are no multiples of the smallest (``"ar1"``).
        """
        if self.kind == "period":
            numbers, name = self.values.asi8, _period_name(self.values.freqstr)
            if structure == "exp":
                return numbers.astype(np.float64), f"{name}s"
            return _steps(numbers, lambda lag: _count(lag, name), column, source)
        ticks = self.values.asi8
        if structure == "exp":
            return ticks / _DAY, "days"
        if self.kind == "date" and (months := _months(self.values)) is not None:
            return _steps(months, lambda lag: _count(lag, "month"), column, source)
        return _steps(ticks, _duration_text, column, source)


def is_time(values: pd.Series[Any], structure: str) -> bool:
    """Whether a column holds dates, periods or durations, or categories that are.

    Categories in an order of their own are the steps of ``"ar1"``.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        if structure == "ar1" and values.cat.ordered:
            return False
        values = pd.Series(values.cat.categories)
    return kind_of(values) in _KINDS and not _is_clock(values)


def as_times(values: pd.Series[Any], column: str, zone: str | None = None) -> Times:
    """A column of times, without missing values, taken apart.

    Parameters
    ----------
    values
        The column.
    column
        Its name, for messages.
    zone
        The zone whose clock counts; by default that of the column.

    Raises
    ------
    InputError
        If periods have several frequencies, or dates lie beyond what pandas has.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    kind = _KINDS[kind_of(values)]
    try:
        made, found = _index(values, kind, zone)
    except (ValueError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"Column {column!r} of `data` cannot be read as times: {reason}") from None
    different = made.unique().sort_values()
    labels = _labels(different, kind)
    codes = different.get_indexer(made)
    return Times(kind, different, pd.Categorical.from_codes(codes, labels), found)


def text_of_times(
    values: pd.Series[Any], column: str, kind: TimesKind, zone: str
) -> pd.Series[Any]:
    """The text of times of new data, as that of the data of a model with such times.

    Text is read as dates are written.

    Raises
    ------
    InputError
        If the column holds something else.
    """
    if not is_time(values, "exp") and kind == "date":
        text = values.astype(object)
        if all(isinstance(value, str) for value in text):
            try:
                values = pd.Series(pd.to_datetime(text, format="ISO8601").array)
            except ValueError as error:
                raise InputError(
                    f"Column {column!r} of the new data holds text that is no date: "
                    f"{str(error).splitlines()[0]}."
                ) from None
    if not is_time(values, "exp") or (own := as_times(values, column, zone)).kind != kind:
        raise InputError(
            f"Column {column!r} held {_NOUNS[kind]} when the model was built; in the new data its "
            f"type is {values.dtype}."
        )
    if own.zone and not zone:
        raise InputError(
            f"Column {column!r} held times without a zone when the model was built; in the new "
            f"data they are of {own.zone}. Take it off: data[{column!r}].dt.tz_localize(None)."
        )
    if zone == "UTC" and not own.zone and kind == "date":
        raise InputError(
            f"Column {column!r} held times of UTC when the model was built; in the new data they "
            f"have no zone. Say which: data[{column!r}].dt.tz_localize('UTC'), or another zone."
        )
    return pd.Series(np.asarray(own.text, dtype=object))


_NOUNS = {"date": "dates or times", "duration": "durations", "period": "periods"}


def check_zone(zone: str) -> str:
    """A zone from a file, if that is the name of one.

    Raises
    ------
    InputError
        If it is none.
    """
    if zone:
        try:
            if not _ZONE.fullmatch(zone) or zone.lower().startswith("dateutil"):
                raise ValueError(zone)
            pd.Timestamp(0).tz_localize(zone)
        except Exception:
            raise InputError(f"The saved recipe names a time zone {zone!r:.80} of none.") from None
    return zone


def _is_clock(values: pd.Series[Any]) -> bool:
    """Whether a column holds times of a day, which have no date."""
    is_object = bool(pd.api.types.is_object_dtype(values.dtype))
    return is_object and pd.api.types.infer_dtype(values) == "time"


def _index(values: pd.Series[Any], kind: TimesKind, zone: str | None) -> tuple[Any, str]:
    """The values as an index, in nanoseconds, and the zone of its clock."""
    if kind == "period":
        return pd.PeriodIndex(values.array), ""
    if kind == "duration":
        return pd.TimedeltaIndex(pd.to_timedelta(values)).as_unit("ns"), ""
    several = False
    if pd.api.types.is_object_dtype(values.dtype):
        zones = {str(getattr(value, "tzinfo", None)) for value in values}
        several = len(zones) > 1
        if several and "None" in zones:
            raise ValueError("some have a time zone and others none")
    made = pd.DatetimeIndex(pd.to_datetime(values, utc=several)).as_unit("ns")
    if made.tz is None:
        return made, ""
    if zone:
        return made.tz_convert(zone).tz_localize(None), zone
    zone = str(made.tz)
    try:
        check_zone(zone)
    except InputError:
        zone = "UTC"
    clock = made.tz_convert(zone).tz_localize(None)
    if clock.nunique() < made.nunique():  # the hour that clocks show twice
        zone, clock = "UTC", made.tz_convert("UTC").tz_localize(None)
    return clock, zone


def _labels(different: Any, kind: TimesKind) -> list[str]:
    """Times as text: a date alone at midnight, days alone where there is no more."""
    text = [str(value) for value in different]
    if kind == "date":
        return [label.removesuffix(" 00:00:00") for label in text]
    return [re.sub(r" \+?00:00:00$", "", label) for label in text]


def _months(dates: Any) -> Any:
    """Months of dates that are all of one day of the month, or the last of theirs; else None."""
    of_day = dates - dates.normalize()
    if len(dates) < 2 or of_day.nunique() > 1:
        return None
    if np.unique(dates.day).size > 1 and not dates.is_month_end.all():
        return None
    months = (12 * dates.year + dates.month - 1).to_numpy().astype(np.int64)
    return months if np.unique(months).size == len(dates) else None


def _steps(numbers: Any, name: Any, column: str, source: str) -> tuple[FloatArray, str]:
    """Whole numbers, ascending and different, in steps of their smallest lag, and its name."""
    if numbers.size < 2:
        return numbers.astype(np.float64), ""
    lags = np.diff(numbers)
    step = int(lags.min())
    if (lags % step != 0).any():
        shown = listing([name(int(lag)) for lag in np.unique(lags)], 6)
        raise InputError(
            f"{source}: the lags of {column!r}, {shown}, are no multiples of the smallest, so the "
            "correlation of one step is not in the data. Round the times to equal steps, such as "
            f"data[{column!r}].dt.floor('D') or .dt.to_period('M'), or write exp({column} | ...), "
            "where correlations are not negative."
        )
    return (numbers // step).astype(np.float64), f"steps of {name(step)}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _duration_text(ticks: int) -> str:
    for size, name in _UNITS:
        if ticks % size == 0:
            return _count(ticks // size, name)
    return str(pd.Timedelta(ticks, "ns"))


def _period_name(frequency: str) -> str:
    name = re.sub(r"^\d+", "", frequency).partition("-")[0]
    return _PERIODS.get(name, "period")
