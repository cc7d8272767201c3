"""A message about an alert as a document of the Common Alerting Protocol 1.2 (OASIS, July 2010), in XML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, tzinfo
from xml.etree.ElementTree import Element, SubElement, indent, register_namespace, tostring

from schemas.alerts import Alert, Category, Kind, Severity, Status

NAMESPACE = "urn:oasis:names:tc:emergency:cap:1.2"
#: What headlines and names are written in.
LANGUAGE = "en"
#: The parameters that say more than CAP has elements for.
PARAMETERS = ("alert_id", "rule", "entity", "feed", "series", "query")

#: Where CAP writes it in another way, or has no word for what a newer release says.
_SEVERITIES: Mapping[Severity, str] = {Severity.UNKNOWN: "Unknown"}
_CATEGORIES: Mapping[Category, str] = {Category.UNKNOWN: Category.OTHER.value}
#: What has to be done: an alert that ended is over.
_URGENCY: Mapping[Kind, str] = {Kind.ALERT: "Immediate", Kind.UPDATE: "Immediate", Kind.CANCEL: "Past"}


class NotCap(ValueError):
    """A message says something that CAP has no word for and no other may stand for."""


def cap_xml(alert: Alert, zone: tzinfo) -> str:
    """The document of a message; its times are of a zone, in whole seconds, as CAP has them.

    An area has the point where it happened as a circle without a radius, where the point is known.

    Raises
    ------
    NotCap
        Its status or its kind is not known.
    """
    if Status.UNKNOWN is alert.status or Kind.UNKNOWN is alert.msg_type:
        raise NotCap(f"the message {alert.event_id} has a status or kind that is not known here; update citystream")
    register_namespace("", NAMESPACE)
    root = Element(f"{{{NAMESPACE}}}alert")
    for name, text in _of_alert(alert, zone):
        _add(root, name, text)
    info = _add(root, "info")
    for name, text in _of_info(alert, zone):
        _add(info, name, text)
    for name, value in _parameters(alert):
        parameter = _add(info, "parameter")
        _add(parameter, "valueName", name)
        _add(parameter, "value", value)
    area = _add(info, "area")
    _add(area, "areaDesc", alert.entity)
    if alert.place is not None:
        _add(area, "circle", f"{alert.place.latitude:.6f},{alert.place.longitude:.6f} 0")
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _of_alert(alert: Alert, zone: tzinfo) -> Iterator[tuple[str, str]]:
    yield "identifier", alert.event_id
    yield "sender", alert.sender
    yield "sent", _instant(alert.sent, zone)
    yield "status", alert.status.value
    yield "msgType", alert.msg_type.value
    yield "scope", "Public"
    if alert.references is not None:
        sender, identifier, sent = alert.references.split(",")
        yield "references", f"{sender},{identifier},{_instant(datetime.fromisoformat(sent), zone)}"


def _of_info(alert: Alert, zone: tzinfo) -> Iterator[tuple[str, str]]:
    yield "language", LANGUAGE
    yield "category", _CATEGORIES.get(alert.category, alert.category.value)
    yield "event", alert.rule
    yield "urgency", _URGENCY[alert.msg_type]
    yield "severity", _SEVERITIES.get(alert.severity, alert.severity.value)
    yield "certainty", "Observed"
    yield "onset", _instant(alert.onset, zone)
    yield "headline", alert.headline


def _parameters(alert: Alert) -> Iterator[tuple[str, str]]:
    for name in PARAMETERS:
        yield name, getattr(alert, name)
    for name, number in json.loads(alert.numbers).items():
        yield name, "" if number is None else str(number)


def _add(parent: Element, name: str, text: str | None = None) -> Element:
    child = SubElement(parent, f"{{{NAMESPACE}}}{name}")
    child.text = None if text is None else "".join(c if _is_xml(c) else "\ufffd" for c in text)
    return child


def _is_xml(character: str) -> bool:
    """Whether XML 1.0 can hold a character."""
    return character in "\t\n\r" or " " <= character <= "\ud7ff" or "\ue000" <= character not in "\ufffe\uffff"


def _instant(at: datetime, zone: tzinfo) -> str:
    """A time with its zone as a number; that of UTC is -00:00."""
    local = at.astimezone(zone).replace(microsecond=0)
    text = local.isoformat()
    return text if local.utcoffset() else f"{text.removesuffix('+00:00')}-00:00"
