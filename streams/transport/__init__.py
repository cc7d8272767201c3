"""All that reaches into Faust and aiokafka; what comes out of it has none of their types.

``tests/unit/test_transport.py`` holds the places where they are extended.
"""
