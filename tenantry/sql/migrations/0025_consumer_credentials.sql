-- The hashes of the passwords of users that read their tenants' topics: as in tenantry.credentials,
-- one is pending until the journal says that access was granted.
CREATE TABLE tenantry.consumer_credentials (
    tenant_id     text        COLLATE "C" PRIMARY KEY,
    password_hash text,
    pending_hash  text,
    set_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT consumer_credentials_of_either_kind
        CHECK (password_hash IS NOT NULL OR pending_hash IS NOT NULL)
);
