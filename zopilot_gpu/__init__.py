"""ZopilotGPU: Mixtral-8x7B-Instruct in 4-bit NF4 behind `POST /prompt`, as a BentoML service.

The floors, from the ground up; imports only go down (`tests/house/test_floors.py` holds it):

    0  settings errors events fair log standard library, pydantic and structlog only
    1  model                           tensors in, tensors out
    2  engine  store  text             token ids, files, text; strangers to each other
    3  runners/                        the only place where store, text, engine and model meet
    4  jobs                            what is asked now and answered later; knows runners by protocol
    5  api                             HTTP; never sees torch
    6  process                         starts, watches and ends the workers; sees api's count of exchanges
    7  cli  demo  bench  doctor        what a person starts; bench is a client and sees neither torch nor runners
       queue_worker  (service.py)
"""

__version__ = "0.1.0"
