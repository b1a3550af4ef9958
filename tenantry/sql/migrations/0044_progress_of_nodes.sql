-- How far each node has come with its backlogs since it started, as it tells while it has some: its
-- seconds; the weights of tenants with a backlog, summed over those; the work done for them, in full
-- batches, and how many batches that were. A node that is held back goes slower for the sake of
-- others. Nodes of the version before tell nothing.
ALTER TABLE tenantry.nodes
    ADD COLUMN progress_seconds double precision NOT NULL DEFAULT 0,
    ADD COLUMN progress_weight  double precision NOT NULL DEFAULT 0,
    ADD COLUMN progress_work    double precision NOT NULL DEFAULT 0,
    ADD COLUMN progress_batches bigint           NOT NULL DEFAULT 0,
    ADD COLUMN held_back        boolean          NOT NULL DEFAULT false;
