-- Replays and discards that are begun before they are done, and letters that come back.
--
-- A letter is one row for as long as it is known: a replay that fails lists it again. `replays`
-- counts those begun, `failed` is the last that ended as a dead letter (0: the original did).
-- An intent is written before anything is published; a row that has one and is not settled was
-- being worked on. A settled row stays, without its bytes, until some time after its message has
-- left the queue (`gone_at`), so that a late copy is known.
--
-- Messages without an id are a letter each, also where they are the same (`copy`). `died_at` is
-- the broker's time of the message in the queue, once a walk has met it. `recorded` is whether the
-- journal tells of the letter: a walk lists what the broker itself has dead-lettered.
ALTER TABLE tenantry.dead_letters
    ADD COLUMN copy       integer     NOT NULL DEFAULT 0,
    ADD COLUMN died_at    timestamptz,
    ADD COLUMN replays    integer     NOT NULL DEFAULT 0,
    ADD COLUMN failed     integer     NOT NULL DEFAULT 0,
    ADD COLUMN intent     uuid,
    ADD COLUMN work       text CHECK (work IN ('replay', 'discard')),
    ADD COLUMN recorded   boolean     NOT NULL DEFAULT true,
    ADD COLUMN gone_at    timestamptz,
    DROP CONSTRAINT dead_letters_tenant_id_fingerprint_key,
    ADD CONSTRAINT dead_letters_fingerprint UNIQUE (tenant_id, fingerprint, copy);

CREATE INDEX dead_letters_unfinished ON tenantry.dead_letters (tenant_id)
    WHERE NOT settled AND (intent IS NOT NULL OR NOT recorded);
CREATE INDEX dead_letters_intent ON tenantry.dead_letters (tenant_id, intent)
    WHERE intent IS NOT NULL;
CREATE INDEX dead_letters_gone ON tenantry.dead_letters (gone_at)
    WHERE gone_at IS NOT NULL;
