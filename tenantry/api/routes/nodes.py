"""Nodes: the daemons that share the tenants, draining them, and tenants' actors on this node."""

from __future__ import annotations

from starlette.responses import Response

from tenantry.api.openapi import Routes
from tenantry.api.routing import Caller
from tenantry.api.schemas.common import answer, json_response
from tenantry.api.schemas.daemon import NodeList, NodeShown, Runtimes, TenantsAsked, runtimes_json
from tenantry.api.services import Injected, Services
from tenantry.domain import names
from tenantry.domain.events import NodeDrainRequested, NodeDrainRevoked
from tenantry.journal.port import ANY, Metadata
from tenantry.nodes.port import NodeNotFoundError

routes = Routes("nodes")


@routes("GET /nodes", "List the nodes", NodeList)
async def list_nodes(services: Injected) -> Response:
    """List the daemons on this database, with the number of tenants each one has.

    A lost node stays on the list until it is back.
    """
    listed = await services.pools.reads.run(services.cluster.listed)
    return answer(NodeList(data=[NodeShown.of(one) for one in listed]))


@routes("POST /nodes/{node}/drain", "Empty a node", NodeShown, errors=(404, 409))
async def drain_node(services: Injected, node: str, caller: Caller) -> Response:
    """Have a node's tenants handed over one by one; it stays up, and takes none until `undrain`.

    Answers at once: `GET /nodes` tells how many tenants are left. 409 if no other node could take
    them.
    """
    return await _set_draining(services, node, caller, draining=True)


@routes("POST /nodes/{node}/undrain", "Let a node have tenants again", NodeShown, errors=(404,))
async def undrain_node(services: Injected, node: str, caller: Caller) -> Response:
    """Take a drain back; the node gets its share of the tenants."""
    return await _set_draining(services, node, caller, draining=False)


@routes("POST /runtime", "Show what tenants' actors do here", Runtimes)
async def show_runtime(services: Injected, asked: TenantsAsked) -> Response:
    """Show what the actors of these tenants do on this node; other nodes' tenants are left out."""
    found = {one: services.control.runtime(one) for one in asked.tenants}
    return json_response(runtimes_json({one: told for one, told in found.items() if told}))


async def _set_draining(
    services: Services, name: str, caller: Metadata, *, draining: bool
) -> Response:
    def change() -> NodeShown:
        services.cluster.set_draining(name, draining=draining)
        event = NodeDrainRequested(node=name) if draining else NodeDrainRevoked(node=name)
        stream = names.node_journal_stream(name)
        services.journal.append(stream, [event], expected=ANY, metadata=caller)
        for one in services.cluster.listed():
            if one.node.name == name:
                return NodeShown.of(one)
        raise NodeNotFoundError(name)

    return answer(await services.pools.urgent.run(change))
