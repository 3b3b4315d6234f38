-- Whom requests are for: tenants share the workers evenly.
ALTER TABLE request ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
