"""The daemon's own proof of isolation."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from tenantry.api import answers, lookup, render, schemas
from tenantry.api.documented import errors
from tenantry.api.services import Caller, Services, Who


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve proofs of isolation on `app`."""

    @app.post(
        "/isolation",
        response_model=answers.Isolation,
        summary="Prove the tenants' isolation",
        tags=["isolation"],
        responses=errors(404, 503, body=True),
    )
    async def prove_isolation(wanted: schemas.ProofWanted, caller: Caller, who: Who) -> Response:
        """Try, in each tenant's place, to reach what is its own and what is others'.

        No password is needed or changed: a user and a role are made with the rights the tenant's
        really have, and removed afterwards. Among very many tenants each is tried on twenty
        others. Nothing is left behind; the outcome is journalled.
        """

        def run() -> bytes:
            for tenant_id in wanted.tenants or ():
                lookup.existing(services.directory, tenant_id, who)
            report = services.prover.prove(wanted.tenants, broker=wanted.broker, metadata=caller)
            return render.dumps(render.isolation(report))

        return render.json_response(await services.pools.proofs.run(run))
