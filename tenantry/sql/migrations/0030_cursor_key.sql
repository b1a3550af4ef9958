-- The key that seals cursors, the same on all nodes: what one of them gave out, another opens.
ALTER TABLE tenantry.installation ADD COLUMN cursor_key bytea;
