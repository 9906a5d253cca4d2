"""Where RunPod's hub looks for a worker; it is `zopilot_gpu.queue_worker`."""

from zopilot_gpu.queue_worker import main

if __name__ == "__main__":
    main()
