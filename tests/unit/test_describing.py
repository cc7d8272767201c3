"""The documents of the catalogue are what the standards' validators accept, and offer nobody what he may not have."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pyshacl
import pytest
from rdflib import DCAT, DCTERMS, FOAF, RDF, Graph, Literal, URIRef
from rdflib.term import Node
from typer.testing import CliRunner

import feeds
from citystream import cli
from citystream.settings import PROJECT, Settings
from operations.describing import Described, asyncapi, dcat
from schemas.catalogue import Catalogue
from schemas.feed import Outgrown
from streams.cluster import Cluster
from streams.publisher import topic_for
from streams.topics import of_references, topics

BASE = "https://data.city.example/"
OPEN = "https://creativecommons.org/licenses/by/4.0/"
SHAPES = Path(__file__).parents[1] / "data" / "dcat_ap_shacl.jsonld"
VALIDATOR = Settings().packages / "asyncapi" / "validate.mjs"
FEEDS, TABLES = feeds.load(), feeds.references()
CITY = Described(FEEDS, TABLES, Catalogue.load(), Cluster(("kafka.example:9092",)), "http://sql.example")
SMALL = replace(CITY, feeds={name: FEEDS[name] for name in ("parking_site", "parking_spot")}, tables={})
PERSONAL = {name for name, feed in FEEDS.items() if any(field.personal for field in feed.fields)}


@pytest.fixture(scope="module")
def shapes() -> Graph:
    """The shapes of DCAT-AP 3.0."""
    return Graph().parse(SHAPES, format="json-ld")


def objections(found: Graph, shapes: Graph) -> str:
    """What DCAT-AP has against a graph."""
    conforms, _, text = pyshacl.validate(found, shacl_graph=shapes, inference="rdfs")
    return "" if conforms else str(text)


@pytest.mark.parametrize("form", ["turtle", "json-ld"])
def test_the_data_sets_are_what_dcat_ap_asks_for(shapes: Graph, form: str) -> None:
    read = Graph().parse(data=dcat.graph(CITY, BASE).serialize(format=form), format=form)
    assert objections(read, shapes) == ""
    assert set(map(str, read.objects(None, DCAT.dataset))) == {f"{BASE}dataset/{one.name}" for one in CITY.all}


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (DCAT.Catalog, DCTERMS.publisher),
        (DCAT.Dataset, DCTERMS.description),
        (DCAT.Distribution, DCAT.accessURL),
        (DCAT.DataService, DCAT.endpointURL),
        (FOAF.Agent, FOAF.name),
    ],
)
def test_what_dcat_ap_asks_for_is_asked_for(shapes: Graph, kind: URIRef, missing: URIRef) -> None:
    found = dcat.graph(CITY, BASE)
    subject = next(found.subjects(RDF.type, kind))
    found.remove((subject, missing, None))
    assert str(subject) in objections(found, shapes)


def rights(found: Graph, name: str) -> str:
    """Who may have a data set, the last word of the European term."""
    return str(found.value(URIRef(f"{BASE}dataset/{name}"), DCTERMS.accessRights)).rpartition("/")[2]


def licensed(found: Graph, name: str) -> set[Node]:
    """The licences of the distributions of a data set."""
    dataset = URIRef(f"{BASE}dataset/{name}")
    return {one for part in found.objects(dataset, DCAT.distribution) for one in found.objects(part, DCTERMS.license)}


def test_only_what_has_a_licence_is_offered_to_everybody_and_nothing_personal_is() -> None:
    assert PERSONAL
    opened = {"parking_site": replace(FEEDS["parking_site"], licence=OPEN)}
    found = dcat.graph(replace(CITY, feeds={**FEEDS, **opened}), BASE)
    for one in CITY.all:
        expected = "PUBLIC" if one.name in opened else "NON_PUBLIC" if one.name in PERSONAL else "RESTRICTED"
        assert rights(found, one.name) == expected
        assert licensed(found, one.name) == ({URIRef(OPEN)} if one.name in opened else set())


def test_every_view_is_where_the_data_set_says_and_records_conform_to_the_newest_frozen_schema() -> None:
    found = dcat.graph(CITY, BASE)
    for feed in FEEDS.values():
        dataset = URIRef(f"{BASE}dataset/{feed.name}")
        parts = {str(one).removeprefix(f"{BASE}distribution/") for one in found.objects(dataset, DCAT.distribution)}
        views = {f"view/{name}" for name in (feed.name, *(aggregate.name for aggregate in feed.aggregates))}
        assert parts == {f"topic/{feed.name}", *views}
        version = CITY.schemas.latest(feed.name).version
        assert found.value(dataset, DCTERMS.conformsTo) == URIRef(f"{BASE}schema/{feed.name}/{version}")


def test_a_name_of_any_department_is_an_address_of_its_own(shapes: Graph) -> None:
    department = FEEDS["parking_site"].department
    names = ["Roads & <Bridges>", "roads & <bridges>", "Roads/Bridges", "city", "停车"]
    named = {
        feed.name: replace(feed, department=replace(department, name=name, contact=f"https://it.example/<{number}>"))
        for number, (feed, name) in enumerate(zip(FEEDS.values(), names, strict=False))
    }
    found = dcat.graph(replace(CITY, feeds=named, tables={}), BASE)
    read = Graph().parse(data=found.serialize(format="turtle"), format="turtle")
    assert objections(read, shapes) == ""
    assert {str(name) for name in read.objects(None, FOAF.name)} == {"The city", *names}
    for name in names:
        (agent,) = read.subjects(FOAF.name, Literal(name))
        assert len([*read.objects(agent, FOAF.name)]) == 1


@pytest.mark.parametrize(
    "base", ["https://data.city.example/", "https://data.city.example/id#", "urn:city:", "http://[::1]:8080/"]
)
def test_names_begin_with_an_address(base: str) -> None:
    done = CliRunner().invoke(cli.build("catalogue"), ["catalogue", "dcat", "--base", base])
    assert done.exit_code == 0, done.output
    found = Graph().parse(data=done.stdout, format="turtle")
    assert (URIRef(f"{base}catalogue"), RDF.type, DCAT.Catalog) in found


@pytest.mark.parametrize(
    "base", ["", "data.city.example/", "https://data.city.example", "https:///", "https://a b/", "https://a/<x>/", "/"]
)
def test_what_no_name_can_begin_with_is_refused(base: str) -> None:
    done = CliRunner().invoke(cli.build("catalogue"), ["catalogue", "dcat", "--base", base])
    assert done.exit_code == 2
    assert "is no address that ends in / : or #" in " ".join(done.output.replace("│", " ").split())


def test_documents_for_others_name_no_registry() -> None:
    """It listens on this machine alone; its schemas are in the documents, or named by them."""
    texts = dcat.graph(CITY, BASE).serialize(format="turtle"), json.dumps(asyncapi.document(CITY))
    assert all("egistry" not in text for text in texts)


def test_the_topics_are_what_asyncapi_asks_for_and_what_is_not_is_refused() -> None:
    """However one logs in; and where an operation does what there is not, or a schema is none of Avro."""
    clusters = [
        Cluster(("a.example:9092", "b.example:9092"), user="somebody", password="of nobody else"),
        Cluster(("kafka.example:9092",), token_file=PROJECT / "token"),
    ]
    documents = [asyncapi.document(CITY), *(asyncapi.document(replace(SMALL, cluster=cluster)) for cluster in clusters)]
    assert "of nobody else" not in json.dumps(documents)
    wrong = [asyncapi.document(SMALL) for _ in range(2)]
    wrong[0]["operations"]["receive_parking_site"]["action"] = "wait"
    wrong[1]["components"]["messages"]["parking_spot"]["payload"]["schema"] = {"type": "record", "name": "nothing"}
    assert VALIDATOR.exists(), "run: make setup"
    done = subprocess.run(
        ["node", VALIDATOR],
        input=json.dumps([*documents, *wrong]),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    *right, action, schema = json.loads(done.stdout)
    assert right == [[], [], []]
    assert any(one.startswith("operations.receive_parking_site.action") for one in action)
    assert any("parking_spot" in one for one in schema)


def test_every_topic_of_records_has_its_message_with_the_newest_frozen_schema() -> None:
    document = asyncapi.document(CITY)
    subjects = {*(one.name for one in CITY.all), *(a.topic for feed in FEEDS.values() for a in feed.aggregates)}
    assert document["channels"].keys() == document["components"]["messages"].keys() == subjects
    partitions = {one.name: one.partitions for one in [*topics(FEEDS.values()), *of_references(TABLES.values(), [])]}
    for subject, message in document["components"]["messages"].items():
        assert message["payload"]["schema"] == CITY.schemas.latest(subject).schema
        assert document["channels"][subject]["bindings"]["kafka"]["partitions"] == partitions[subject]
    done = [name.partition("_") for name in document["operations"]]
    received, sent = ({name for does, _, name in done if does == action} for action in ("receive", "send"))
    assert received == {one.name for one in CITY.all if not getattr(one, "by_workers", False)}
    assert "case" in received & sent, "alerts open cases, and people move them on"
    assert sent == subjects - {one.name for one in CITY.all} | {"alert", "case"}


def test_a_feed_that_grew_is_described_where_it_is_published_now() -> None:
    feed = FEEDS["parking_site"]
    grown = replace(feed, outgrown=(Outgrown(partitions=4, until=feed.earliest),), partitions=8)
    document = asyncapi.document(replace(CITY, feeds={feed.name: grown}))
    assert f"receive_{topic_for(grown)}" in document["operations"]
    assert document["channels"][topic_for(grown)]["bindings"]["kafka"]["partitions"] == 8
