"""The processes of the service: a launcher that starts the worker again, and a worker that knows when to end.

launcher (BentoML's, `launcher`)   holds the port, starts the worker, hears of its death, gives up after too many (`deaths`)
worker   (BentoML's, `worker`)     serves; drains when it is told to stop; ends itself when its engine is beyond help
"""
