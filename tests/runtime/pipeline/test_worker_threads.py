"""Threads that are kept: the next job of a name finds the thread of the last one."""

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


def test_a_thread_is_found_again_by_its_name(monkeypatch):
    monkeypatch.setattr(worker_threads, "_idle", {})  # other tests' threads may fill the places for idle ones
    first = run("one-job")
    assert run("one-job") is first
    assert run("another-job") is not first
    assert first.daemon
    assert not [t for t in threading.enumerate() if t.name.endswith("-job")]


def test_jobs_of_one_name_run_side_by_side():
    meet = threading.Barrier(3)
    jobs = [Job(lambda: meet.wait(5) and None, "together") for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(5)
    assert not meet.broken
    assert not any(job.is_alive() for job in jobs)


def test_a_job_knows_its_own_thread_and_does_not_wait_for_itself():
    told = []
    job = Job(lambda: (told.append((job.is_mine(), threading.current_thread().name)), job.join()), "mine")
    job.start()
    job.join(5)
    assert told == [(True, "mine")]
    assert not job.is_mine()


def test_what_raises_is_reported_and_its_thread_is_not_used_again(monkeypatch):
    reported = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))

    def fail():
        raise OSError("no")

    first = run("failing", fail)
    first.join(5)
    assert reported == [OSError]
    assert run("failing") is not first


def test_names_without_number_leave_no_threads_without_number():
    for k in range(60):
        run(f"sink-{k}")
    assert threading.active_count() < 40


def test_a_fork_starts_threads_of_its_own():
    run("before-the-fork")
    child = multiprocessing.get_context("fork").Process(target=run, args=("before-the-fork",))
    child.start()
    child.join(20)
    assert child.exitcode == 0
