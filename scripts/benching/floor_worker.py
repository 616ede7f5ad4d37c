"""The floor as a process; see worker.py."""

from benching.worker import one_thread, serve

if __name__ == "__main__":
    one_thread()
    from benching import floor

    serve(floor.run)
