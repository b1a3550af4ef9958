"""The multi-tenant producer: tenants that publish as themselves, and the proof of their isolation.

`produce` runs it; `verify_isolation` is the proof alone.
"""

from tenantry.isolation.port import Check, IsolationReport
from tenantry.isolation.proof import verify_isolation
from tenantry.producer.run import ProduceResult, ProducerOptions, Tally, produce
from tenantry.tenant_client.access import Api, ProducerError, TenantAccess

__all__ = [
    "Api",
    "Check",
    "IsolationReport",
    "ProduceResult",
    "ProducerError",
    "ProducerOptions",
    "Tally",
    "TenantAccess",
    "produce",
    "verify_isolation",
]
