"""Test the thread pool: a job gets the idle thread of an earlier job of the same name."""

import gc
import multiprocessing
import threading

from tfiseg.runtime.pipeline import worker_threads
from tfiseg.runtime.pipeline.worker_threads import Job


def run(name, work=lambda: None):
    job, seen = Job(lambda: (seen.append(threading.current_thread()), work()), name), []
    assert not job.is_alive()
    job.start()
    job.join(5)
    assert not job.is_alive()
    return seen[0]


def test_threads_are_reused_by_name(monkeypatch):
    monkeypatch.setattr(worker_threads, "_idle", {})  # other tests' threads may fill the pool
    first = run("one-job")
    assert run("one-job") is first
    assert run("another-job") is not first
    assert first.daemon
    assert not [t for t in threading.enumerate() if t.name.endswith("-job")]


def test_jobs_of_one_name_run_in_parallel():
    meet = threading.Barrier(3)
    jobs = [Job(lambda: meet.wait(5) and None, "together") for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(5)
    assert not meet.broken
    assert not any(job.is_alive() for job in jobs)


def test_a_job_recognizes_its_own_thread_and_does_not_wait_for_itself():
    seen = []
    job = Job(lambda: (seen.append((job.is_current(), threading.current_thread().name)), job.join()), "mine")
    job.start()
    job.join(5)
    assert seen == [(True, "mine")]
    assert not job.is_current()


def test_an_error_is_reported_and_its_thread_is_not_reused(monkeypatch):
    reported = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))

    def fail():
        raise OSError("no")

    first = run("failing", fail)
    first.join(5)
    assert reported == [OSError]
    assert run("failing") is not first


def test_the_number_of_idle_threads_is_limited():
    for k in range(60):
        run(f"sink-{k}")
    assert threading.active_count() < 40


def test_a_forked_process_starts_new_threads():
    run("before-the-fork")
    gc.collect()  # in the child, this would wait for threads of networks, which a fork does not copy
    child = multiprocessing.get_context("fork").Process(target=run, args=("before-the-fork",), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0
