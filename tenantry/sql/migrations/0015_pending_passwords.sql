-- A password is pending until the broker has it and the journal says so. What a lost or changed user
-- is brought back to is the one confirmed before: somebody may have been shown that one.
ALTER TABLE tenantry.credentials
    ALTER COLUMN password_hash DROP NOT NULL,
    ADD COLUMN pending_hash text,
    ADD CONSTRAINT credentials_of_either_kind
        CHECK (password_hash IS NOT NULL OR pending_hash IS NOT NULL);
