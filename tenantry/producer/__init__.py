"""The multi-tenant producer: tenants that publish as themselves, and the proof of their isolation.

`produce` runs it; `verify_isolation` is the proof alone.
"""

from tenantry.isolation.checks import Check, IsolationReport
from tenantry.isolation.proof import verify_isolation
from tenantry.producer.run import ProduceResult, ProducerOptions, produce
from tenantry.producer.sender import Tally
from tenantry.tenant_client.access import Api, ProducerError, TenantAccess, TenantNames

__all__ = [
    "Api",
    "Check",
    "IsolationReport",
    "ProduceResult",
    "ProducerError",
    "ProducerOptions",
    "Tally",
    "TenantAccess",
    "TenantNames",
    "produce",
    "verify_isolation",
]
