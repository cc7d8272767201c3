"""The contract: the words a feed is declared in, Avro schemas, codecs and verdicts."""
