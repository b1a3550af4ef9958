-- A tenant whose deletion is under way is said to be deleting; older programs called it draining,
-- as they did the daemon. What is made of the journal is brought up to that; the events stay.
UPDATE tenantry.tenants
SET lifecycle = 'deleting', state = jsonb_set(state, '{lifecycle}', '"deleting"')
WHERE lifecycle = 'draining';

UPDATE tenantry.snapshots
SET data = jsonb_set(data, '{lifecycle}', '"deleting"')
WHERE data ->> 'lifecycle' = 'draining';
