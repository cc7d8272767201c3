"""DCAT-AP 3: the data sets of the city, where and in which form they are, and who may have them."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import quote

from rdflib import DCAT, DCTERMS, FOAF, RDF, RDFS, XSD, Graph, Literal, Namespace, URIRef
from rdflib.term import Node

from operations.describing import Described, access, readers
from schemas.catalogue import FrozenSchema
from schemas.department import Department
from schemas.feed import Aggregate, Feed
from schemas.reference import Reference

VCARD = Namespace("http://www.w3.org/2006/vcard/ns#")
EUROPE = "http://publications.europa.eu/resource/authority/"
RIGHTS, FREQUENCY, FORMAT = (f"{EUROPE}{table}/" for table in ("access-right", "frequency", "file-type"))
MEDIA = "https://www.iana.org/assignments/media-types/"
#: What an address may hold besides letters and digits.
RESERVED = ":/?#[]@!$&'()*+,;=%~"


def graph(city: Described, base: str) -> Graph:
    """The catalogue; names begin with ``base``, which ends as names can be added to it."""
    return _Catalogue(city, base).graph


class _Catalogue:
    """The graph as it is made."""

    def __init__(self, city: Described, base: str) -> None:
        self._city = city
        self._base = base
        self.graph = Graph()
        self.graph.bind("vcard", VCARD)
        self._catalogue = self._named("catalogue")
        publisher = self._named("publisher")
        self._say(publisher, a=FOAF.Agent, name=(FOAF.name, "The city"))
        self._described(self._catalogue, DCAT.Catalog, "The city's feeds", "What the departments of the city publish")
        self._add(self._catalogue, DCTERMS.publisher, publisher)
        about = "Records as they come, in Kafka, in Confluent's wire format"
        self._stream = self._service("stream", "Topics", about, f"kafka://{city.cluster.servers[0]}")
        self._sql = self._service("sql", "Views", "The database city, in the SQL of ClickHouse", city.sql)
        for one in city.all:
            self._dataset(one)

    def _named(self, *parts: str) -> URIRef:
        return URIRef(self._base + "/".join(quote(part, safe="") for part in parts))

    def _add(self, subject: Node, predicate: URIRef, value: Node) -> None:
        self.graph.add((subject, predicate, value))

    def _say(self, subject: Node, *, a: URIRef, **said: tuple[URIRef, str]) -> None:
        self._add(subject, RDF.type, a)
        for predicate, text in said.values():
            self._add(subject, predicate, Literal(text))

    def _known(self, value: str, kind: URIRef) -> URIRef:
        """A term of somebody's vocabulary, with what it is: so a reader need not look it up."""
        self._add(URIRef(value), RDF.type, kind)
        return URIRef(value)

    def _described(self, subject: Node, kind: URIRef, title: str, description: str) -> None:
        self._add(subject, RDF.type, kind)
        for predicate, text in ((DCTERMS.title, title), (DCTERMS.description, description)):
            self._add(subject, predicate, Literal(text, lang="en"))

    def _service(self, name: str, title: str, description: str, address: str) -> URIRef:
        service = self._named("service", name)
        self._described(service, DCAT.DataService, title, description)
        self._add(service, DCAT.endpointURL, self._known(address, RDFS.Resource))
        self._add(self._catalogue, DCAT.service, service)
        return service

    def _department(self, department: Department) -> tuple[URIRef, URIRef]:
        """Who publishes, and whom to ask."""
        agent, contact = (self._named(kind, department.name) for kind in ("publisher", "contact"))
        self._say(agent, a=FOAF.Agent, name=(FOAF.name, department.name))
        self._say(contact, a=VCARD.Organization, name=(VCARD.fn, department.name))
        self._add(contact, RDF.type, VCARD.Kind)
        how = (
            (VCARD.hasEmail, f"mailto:{department.contact}") if department.mail else (VCARD.hasURL, department.contact)
        )
        self._add(contact, how[0], URIRef(quote(how[1], safe=RESERVED)))
        return agent, contact

    def _dataset(self, one: Feed | Reference) -> None:
        dataset = self._named("dataset", one.name)
        purpose = f"{one.description}. Purpose: {one.department.purpose}."
        self._described(dataset, DCAT.Dataset, one.description, purpose)
        agent, contact = self._department(one.department)
        frequency = f"{FREQUENCY}{'CONT' if isinstance(one, Feed) else 'IRREG'}"
        self._add(dataset, DCTERMS.identifier, Literal(one.name))
        self._add(dataset, DCTERMS.publisher, agent)
        self._add(dataset, DCAT.contactPoint, contact)
        self._add(dataset, DCAT.keyword, Literal(f"batch {one.batch}", lang="en"))
        self._add(dataset, DCTERMS.accessRights, self._known(f"{RIGHTS}{access(one)}", DCTERMS.RightsStatement))
        self._add(dataset, DCTERMS.accrualPeriodicity, self._known(frequency, DCTERMS.Frequency))
        self._add(self._catalogue, DCAT.dataset, dataset)
        frozen = self._city.schemas.latest(one.name)
        self._topic(dataset, one, frozen)
        self._view(dataset, one, one.name, one.description)
        if isinstance(one, Feed):
            for aggregate in one.aggregates:
                self._windows(dataset, one, aggregate)

    def _topic(self, dataset: URIRef, one: Feed | Reference, frozen: FrozenSchema) -> None:
        """The records on their topic, as the newest frozen schema says."""
        about = f"{one.description}, as they come"
        found = self._distribution(dataset, one, ("topic", one.name), about, self._stream)
        standard = self._named("schema", one.name, str(frozen.version))
        self._add(standard, RDF.type, DCTERMS.Standard)
        self._add(standard, DCTERMS.title, Literal(f"Avro schema {one.name}, version {frozen.version}", lang="en"))
        self._add(found, DCTERMS.conformsTo, standard)
        self._add(dataset, DCTERMS.conformsTo, standard)
        self._add(found, DCAT.mediaType, self._known(f"{MEDIA}application/vnd.apache.avro", DCTERMS.MediaType))

    def _view(self, dataset: URIRef, one: Feed | Reference, name: str, title: str) -> URIRef:
        return self._distribution(dataset, one, ("view", name), f"{title}: city.{name}", self._sql)

    def _windows(self, dataset: URIRef, feed: Feed, aggregate: Aggregate) -> None:
        found = self._view(dataset, feed, aggregate.name, aggregate.description)
        self._add(found, DCAT.temporalResolution, Literal(_duration(aggregate.window), datatype=XSD.duration))

    def _distribution(
        self, dataset: URIRef, one: Feed | Reference, name: tuple[str, str], title: str, service: URIRef
    ) -> URIRef:
        found = self._named("distribution", *name)
        self._described(found, DCAT.Distribution, title, title)
        (address,) = self.graph.objects(service, DCAT.endpointURL)
        self._add(found, DCAT.accessURL, address)
        self._add(found, DCAT.accessService, service)
        self._add(service, DCAT.servesDataset, dataset)
        rights = self._named("rights", one.name)
        self._say(rights, a=DCTERMS.RightsStatement, words=(RDFS.label, readers(one)))
        self._add(found, DCTERMS.rights, rights)
        if one.licence:
            self._add(found, DCTERMS.license, self._known(quote(one.licence, safe=RESERVED), DCTERMS.LicenseDocument))
        self._add(dataset, DCAT.distribution, found)
        return found


def _duration(span: timedelta) -> str:
    return f"PT{span // timedelta(seconds=1)}S"
