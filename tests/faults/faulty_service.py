"""The service with the model of `faulty_model`."""

import service
import tests.faults.faulty_model  # noqa: F401  (its import is the fault)

ZopilotGPU = service.ZopilotGPU
