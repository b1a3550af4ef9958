-- Dead letters of messages without an id, of which very many may be the same, by how it stands with
-- them: the first few are found without a look at the others.
CREATE INDEX dead_letters_originals
    ON tenantry.dead_letters (tenant_id, fingerprint, died_at, copy)
    WHERE message_id IS NULL AND NOT settled AND failed = 0;
CREATE INDEX dead_letters_begun
    ON tenantry.dead_letters (tenant_id, fingerprint, copy)
    WHERE message_id IS NULL AND NOT settled AND intent IS NOT NULL;
CREATE INDEX dead_letters_settled
    ON tenantry.dead_letters (tenant_id, fingerprint, died_at, copy)
    WHERE message_id IS NULL AND settled;
