"""Runs a workflow on a picture through comfy-worker: publish, follow, fetch.

    python publish.py WORKFLOW.json NODE.INPUT PICTURE [--id ID] [--out DIR]

The picture goes to S3, the job into the queue; progress is shown, outputs are fetched, Ctrl-C cancels.
The same call is the same job: it is run once, however often it is published.

Environment: AMQP_URL, INPUTS (s3://bucket/folder for pictures), RESULTS (the workers' store.uri), and the
usual AWS_* variables.
Exit codes: 0 done, 1 the job failed, 2 wrong call, 3 broker or store failed, 130 cancelled.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path

import boto3
import botocore.exceptions
import pika
import pika.exceptions
from botocore.config import Config

QUEUE, EVENTS, CONTROL = "comfy.jobs", "comfy.events", "comfy.control"
TRIES = 8  # connections in a row that fail before this gives up
CANCEL_EVERY = 5  # seconds: an order that no worker heard is lost
LOOK_EVERY = 2  # seconds: once the line was cut, the answer may lie in the store alone


class Cancelled:
    """Set by the first Ctrl-C; the second one ends the program."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGINT, self.ask)

    def ask(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def note(text):
    print(text, file=sys.stderr, flush=True)


def s3_client():
    # Stores beside Amazon's have no host name for each bucket.
    elsewhere = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    style = {"addressing_style": "path"} if elsewhere else {}
    return boto3.client("s3", config=Config(s3=style))


def split(uri):
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def make_job(s3, arguments):
    """The body, the same bytes for the same call: only then it is the same job."""
    workflow = json.loads(Path(arguments.workflow).read_bytes())
    picture = Path(arguments.picture).read_bytes()
    # Named by its content: it can be uploaded again, and never changes under a job.
    name = hashlib.sha256(picture).hexdigest() + Path(arguments.picture).suffix
    source = f"{os.environ['INPUTS'].rstrip('/')}/{name}"
    bucket, key = split(source)
    s3.put_object(Bucket=bucket, Key=key, Body=picture)
    job = {"version": 1, "workflow": workflow, "inputs": {arguments.input: source}}
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
    job["id"] = arguments.id or f"picture-{digest[:32]}"
    return job["id"], json.dumps(job, sort_keys=True).encode()


class Letter:
    """A job on its way: what stays the same over lost connections."""

    def __init__(self, job_id, body):
        self.job_id, self.body = job_id, body
        self.replies = f"replies.{uuid.uuid4().hex}"
        self.correlation_id = uuid.uuid4().hex
        self.confirmed = False  # The broker has it: publishing it again could only run it twice.
        self.failures = 0


def run(url, s3, letter, cancelled):
    """The result's bytes, over lost connections."""
    parameters = pika.URLParameters(url)
    while True:
        try:
            with pika.BlockingConnection(parameters) as connection:
                return publish_and_wait(connection, s3, letter, cancelled)
        except (pika.exceptions.AuthenticationError, pika.exceptions.ProbableAccessDeniedError):
            raise
        except (pika.exceptions.AMQPConnectionError, pika.exceptions.NackError, pika.exceptions.ChannelClosedByBroker) as error:
            letter.failures += 1
            # 405: the reply queue still belongs to the connection that was lost.
            is_final = isinstance(error, pika.exceptions.ChannelClosedByBroker) and error.reply_code != 405
            if is_final or letter.failures == TRIES:
                raise
            note(f"{type(error).__name__}: connecting again")
            time.sleep(min(0.5 * 2**letter.failures, 30))


def publish_and_wait(connection, s3, letter, cancelled):
    channel = connection.channel()
    channel.confirm_delivery()
    # Listen first: events are not kept. The queue goes with the connection, and has its name again on the next.
    channel.queue_declare(letter.replies, exclusive=True)
    channel.queue_bind(letter.replies, EVENTS, f"job.{letter.job_id}.*")
    was_cut = letter.confirmed
    if not letter.confirmed:
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=pika.DeliveryMode.Persistent,
            message_id=letter.job_id,
            correlation_id=letter.correlation_id,
            reply_to=letter.replies,
            timestamp=int(time.time()),
        )
        # Mandatory: without it a message that no queue takes is confirmed, and gone.
        channel.basic_publish("", QUEUE, letter.body, properties, mandatory=True)
        letter.confirmed = True
        note(f"{letter.job_id} is in the queue")
    letter.failures = 0
    cancel_at = look_at = 0
    for method, properties, message in channel.consume(letter.replies, auto_ack=True, inactivity_timeout=0.2):
        now = time.monotonic()
        if cancelled.asked and now >= cancel_at:
            note("cancelling")
            channel.basic_publish(CONTROL, "", json.dumps({"cancel": letter.job_id}))
            cancel_at = now + CANCEL_EVERY
        if was_cut and now >= look_at:
            result = stored_result(s3, letter.job_id)
            if result is not None:
                return result
            look_at = now + LOOK_EVERY
        if method is None:
            continue
        if method.exchange != EVENTS:
            if properties.correlation_id == letter.correlation_id:
                return message
        elif not method.routing_key.endswith(".preview"):  # a preview is a picture
            show(json.loads(message))


def stored_result(s3, job_id):
    """What the worker sends is this object, byte for byte; `None`: the job is not over."""
    bucket, key = split(f"{os.environ['RESULTS'].rstrip('/')}/{job_id}/result.json")
    try:
        return s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except s3.exceptions.NoSuchKey:
        return None


def show(event):
    detail = ""
    if event["event"] == "progress":
        detail = f" {event['fraction']:4.0%} {event['title']}"
    note(f"  {event['event']}{detail}")


def fetch(s3, result, folder):
    """Stores each output as a file and prints its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for output in result["outputs"]:
        # Nodes may use the same name; a text has none.
        name = f"{output['node']}-{output['index']}-{Path(output.get('filename', 'text.txt')).name}"
        path = folder / name
        if "uri" not in output:
            path.write_text(output["text"])
        else:
            bucket, key = split(output["uri"])
            s3.download_file(bucket, key, str(path))
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != output["sha256"]:
                    raise OSError(f"{path} is not what the result says")
        print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow")
    parser.add_argument("input")
    parser.add_argument("picture")
    parser.add_argument("--id")
    parser.add_argument("--out", default=".", type=Path)
    arguments = parser.parse_args()
    for name in ("INPUTS", "RESULTS"):
        if not os.environ.get(name, "").startswith("s3://"):
            parser.error(f"{name} must be set: s3://bucket/folder")
    cancelled = Cancelled()
    s3 = s3_client()
    url = os.environ.get("AMQP_URL", "amqp://localhost")
    try:
        job_id, body = make_job(s3, arguments)
        result = json.loads(run(url, s3, Letter(job_id, body), cancelled))
        if result["status"] == "succeeded":
            fetch(s3, result, arguments.out)
            return 0
    except pika.exceptions.UnroutableError:
        note(f"there is no queue {QUEUE}: has a worker ever run?")
        return 3
    except (pika.exceptions.AMQPError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        note(f"{type(error).__name__}: {error}")
        return 3
    if result["status"] == "cancelled":
        note("cancelled")
        return 130
    error = result["error"]
    note(f"failed: {error['code']} in {error['stage']}: {error['message']}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
