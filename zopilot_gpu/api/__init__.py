"""HTTP: the gate in front of the routes, the routes, the shapes on the wire. Knows runners by protocol; never sees torch."""
