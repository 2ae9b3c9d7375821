"""A Lepton workspace on loopback, as far as jobs and Ray clusters go.

A job runs as a process here, with the variables that it is sent; a Ray cluster is a real Ray (:mod:`clusters`), whose
dashboard is passed on.

Faults are switched on from outside: ``POST /__fault`` with ``{"errors": N}`` lets the next N calls answer 500,
``{"lost_answer": 1}`` makes a job or a cluster and breaks the connection before the answer, ``{"drop_logs": N}`` breaks
the next N logs in the middle, ``{"never_ready": 1}`` makes a cluster that no worker joins, ``{"no_delete": N}`` refuses
the next N deletions of clusters, and from ``{"down": 1}`` to ``{"down": 0}`` every connection breaks, while jobs go on.
``GET /__calls`` lists every call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.integration.lepton.clusters import RayCluster

TOKEN = os.environ["FAKE_LEPTON_TOKEN"]
FOLDER = Path(os.environ["FAKE_LEPTON_FOLDER"])
SECRETS = {"hf-secret": "value-of-the-hf-secret"}
BASE = "/api/v2/workspaces/{workspace}"
DELAY_S = 0.3
JOB_NAME = re.compile(r"[a-z]([a-z0-9-]{0,34}[a-z0-9])?")

routes = web.RouteTableDef()
jobs: dict[str, dict[str, Any]] = {}
processes: dict[str, asyncio.subprocess.Process] = {}
clusters: dict[str, RayCluster] = {}
calls: list[dict[str, Any]] = []
faults: dict[str, int] = {"errors": 0, "lost_answer": 0, "drop_logs": 0, "never_ready": 0, "no_delete": 0, "down": 0}
tasks: set[asyncio.Task[None]] = set()


def due(fault: str) -> bool:
    if faults[fault] > 0:
        faults[fault] -= 1
        return True
    return False


@web.middleware
async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.path.startswith("/__"):
        return await handler(request)  # type: ignore[no-any-return]
    if faults["down"] and request.transport is not None:
        request.transport.abort()
        return web.Response(status=503)
    body = await request.read()
    is_json = "json" in request.headers.get("Content-Type", "")
    sent = json.loads(body) if body and is_json else len(body) or None
    calls.append({"method": request.method, "path": request.path, "body": sent})
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return web.json_response({"code": "Unauthorized", "message": "invalid token"}, status=401)
    if due("errors"):
        return web.json_response({"message": "upstream connect error"}, status=500)
    return await handler(request)  # type: ignore[no-any-return]


@routes.get("/__calls")
async def list_calls(request: web.Request) -> web.Response:
    return web.json_response(calls)


@routes.post("/__fault")
async def set_fault(request: web.Request) -> web.Response:
    faults.update(await request.json())
    return web.json_response(faults)


@routes.get(BASE)
@routes.get(BASE + "/workspace")
async def workspace(request: web.Request) -> web.Response:
    zero = {"cpu": 0, "memory": 0, "accelerator_num": 0}
    kinds = ("deployments", "jobs", "pods", "secrets", "image_pull_secrets", "photons")
    return web.json_response(
        {
            "display_name": "lab",
            "workspace_name": request.match_info["workspace"],
            "workspace_tier": "enterprise",
            "workspace_state": "normal",
            "build_time": "2026-01-01",
            "git_commit": "1.0.0",
            "supported_shapes": {},
            "workspace_disk_usage_bytes": 0,
            "resource_quota": {"limit": zero, "used": zero},
            "workloads": {f"num_{kind}": 0 for kind in kinds},
        }
    )


@routes.get(BASE + "/tokens")
async def tokens(request: web.Request) -> web.Response:
    return web.json_response([{"masked_value": "t...t", "expires_at": int(time.time() * 1000) + 90 * 86400_000}])


@routes.get(BASE + "/dedicated-node-groups")
async def groups(request: web.Request) -> web.Response:
    group = {"metadata": {"id": "ng-a1", "name": "h100"}, "spec": {"gpu_product": "H100"}, "status": {"ready_nodes": 2}}
    return web.json_response([group])


@routes.get(BASE + "/dedicated-node-groups/{group}/nodes")
async def nodes(request: web.Request) -> web.Response:
    names = ("node-1", "node-2")
    rows = [
        {"metadata": {"id": n, "name": n}, "spec": {"unschedulable": False}, "status": {"status": ["Ready"]}}
        for n in names
    ]
    return web.json_response(rows)


@routes.post(BASE + "/jobs")
async def create(request: web.Request) -> web.Response:
    job = await request.json()
    name = job["metadata"].get("id") or job["metadata"].get("name") or ""
    if not JOB_NAME.fullmatch(name):
        return web.json_response({"message": f"invalid job name {name!r}"}, status=400)
    if any(other["metadata"]["name"] == name for other in jobs.values()):
        return web.json_response({"message": f"job {name} already exists"}, status=409)
    if any(group != "ng-a1" for group in job["spec"].get("affinity", {}).get("allowed_dedicated_node_groups", [])):
        return web.json_response({"message": "node group not found"}, status=400)
    # The service gives jobs an id of its own.
    ident = f"{name}-{len(jobs):02d}"
    job["metadata"] |= {"id": ident, "name": name, "created_at": int(time.time() * 1000), "version": 1}
    job["status"] = {"job_name": name, "state": "Queueing", "job_history": []}
    jobs[ident] = job
    task = asyncio.create_task(run(ident))
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    if due("lost_answer"):
        assert request.transport is not None
        request.transport.abort()
    return web.json_response(job, status=201)


async def run(ident: str) -> None:
    spec, status = jobs[ident]["spec"], jobs[ident]["status"]
    for state in ("Starting", "Running"):
        await asyncio.sleep(DELAY_S)
        if spec.get("stopped"):
            status["state"] = "Stopped"
            return
        status["state"] = state
    folder = FOLDER / ident
    folder.mkdir(parents=True)
    variables = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    for env in spec.get("envs") or []:
        variables[env["name"]] = env["value"] if "value" in env else SECRETS[env["value_from"]["secret_name_ref"]]
    variables |= {"LEPTON_JOB_NAME": ident, "LEPTON_JOB_WORKER_INDEX": "0", "LEPTON_JOB_TOTAL_WORKERS": "1"}
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *spec["container"]["command"], cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True
        )
    processes[ident] = process
    code = await process.wait()
    status["state"] = "Stopped" if spec.get("stopped") else "Completed" if code == 0 else "Failed"


def find(request: web.Request) -> dict[str, Any]:
    try:
        return jobs[request.match_info["job"]]
    except KeyError:
        raise web.HTTPNotFound(text='{"message": "job not found"}', content_type="application/json") from None


@routes.get(BASE + "/jobs")
async def listing(request: web.Request) -> web.Response:
    wanted = request.query.get("q", "")
    page, size = int(request.query.get("page", 1)), int(request.query.get("page_size", 500))
    found = [job for job in jobs.values() if wanted in job["metadata"]["name"]]
    return web.json_response({"jobs": found[(page - 1) * size : page * size], "total": len(found)})


@routes.get(BASE + "/jobs/{job}")
async def get(request: web.Request) -> web.Response:
    return web.json_response(find(request))


@routes.patch(BASE + "/jobs/{job}")
async def patch(request: web.Request) -> web.Response:
    job = find(request)
    job["spec"] |= (await request.json()).get("spec", {})
    process = processes.get(request.match_info["job"])
    if job["spec"].get("stopped") and process is not None and process.returncode is None:
        os.killpg(process.pid, signal.SIGTERM)
    return web.json_response(job)


@routes.delete(BASE + "/jobs/{job}")
async def delete(request: web.Request) -> web.Response:
    find(request)
    del jobs[request.match_info["job"]]
    return web.json_response({})


@routes.get(BASE + "/jobs/{job}/events")
async def events(request: web.Request) -> web.Response:
    find(request)
    return web.json_response([])


@routes.get(BASE + "/jobs/{job}/replicas")
async def replicas(request: web.Request) -> web.Response:
    find(request)
    ident = request.match_info["job"]
    rows = (
        [{"metadata": {"id": f"{ident}-0-abcde"}, "id": f"{ident}-0-abcde", "status": {}}] if ident in processes else []
    )
    return web.json_response(rows)


@routes.get(BASE + "/jobs/{job}/replicas/{replica}/log")
async def log_of(request: web.Request) -> web.StreamResponse:
    find(request)
    ident = request.match_info["job"]
    process = processes[ident]
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    drops, sent = due("drop_logs"), 0
    with (FOLDER / ident / "log").open("rb") as log:
        while True:
            over = process.returncode is not None
            new = log.read()
            if new:
                await response.write(new)
                sent += len(new)
            elif over:
                break
            if drops and sent > 300:
                assert request.transport is not None
                request.transport.abort()
                return response
            await asyncio.sleep(0.1)
    await response.write_eof()
    return response


@routes.post(BASE + "/rayclusters")
async def create_cluster(request: web.Request) -> web.Response:
    body = await request.json()
    name = body["metadata"].get("id") or ""
    if not JOB_NAME.fullmatch(name):
        return web.json_response({"message": f"invalid name {name!r}"}, status=400)
    if name in clusters:
        return web.json_response({"message": f"raycluster {name} already exists"}, status=409)
    spec = body["spec"]
    groups = [spec["head_group_spec"], *(spec.get("worker_group_specs") or [])]
    if any(group["affinity"]["allowed_dedicated_node_groups"] != ["ng-a1"] for group in groups):
        return web.json_response({"message": "node group not found"}, status=400)
    body["metadata"] |= {"name": name, "created_at": int(time.time() * 1000), "version": 1}
    cluster = clusters[name] = RayCluster(body, FOLDER / f"ray-{name}", SECRETS, lonely=due("never_ready"))
    task = asyncio.create_task(cluster.run())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    if due("lost_answer"):
        assert request.transport is not None
        request.transport.abort()
    return web.json_response(cluster.body, status=201)


def find_cluster(request: web.Request) -> RayCluster:
    try:
        return clusters[request.match_info["cluster"]]
    except KeyError:
        raise web.HTTPNotFound(text='{"message": "raycluster not found"}', content_type="application/json") from None


@routes.get(BASE + "/rayclusters")
async def list_clusters(request: web.Request) -> web.Response:
    return web.json_response([cluster.body for cluster in clusters.values()])


@routes.get(BASE + "/rayclusters/{cluster}")
async def get_cluster(request: web.Request) -> web.Response:
    return web.json_response(find_cluster(request).body)


@routes.patch(BASE + "/rayclusters/{cluster}")
async def patch_cluster(request: web.Request) -> web.Response:
    cluster = find_cluster(request)
    change = (await request.json())["spec"]
    cluster.body["spec"] |= change
    if change.get("suspend"):
        cluster.stop()
    return web.json_response(cluster.body)


@routes.delete(BASE + "/rayclusters/{cluster}")
async def delete_cluster(request: web.Request) -> web.Response:
    cluster = find_cluster(request)
    if due("no_delete"):
        return web.json_response({"message": "not while it is scaling"}, status=409)
    cluster.stop()
    del clusters[request.match_info["cluster"]]
    return web.json_response({})


@routes.route("*", BASE + "/rayclusters/{cluster}/dashboard/{path:.*}")
async def dashboard(request: web.Request) -> web.StreamResponse:
    return await find_cluster(request).pass_on(request, request.match_info["path"])


async def end_all(app: web.Application) -> None:
    for cluster in clusters.values():
        cluster.stop()
    for process in processes.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    app = web.Application(middlewares=[guard], client_max_size=16 << 20)
    app.add_routes(routes)
    app.on_shutdown.append(end_all)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=lambda *_: None)


if __name__ == "__main__":
    main()
