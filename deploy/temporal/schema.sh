#!/bin/sh
# Brings Temporal's two databases to the schema that this version of the tool carries. Every step does nothing where
# nothing is to be done, so it runs before every start and is the whole of a schema upgrade.
# The connection comes from SQL_HOST, SQL_PORT, SQL_USER, SQL_PASSWORD and SQL_PLUGIN.
set -eu
for database in temporal temporal_visibility; do
    schema=postgresql/v12/${database#temporal_}
    temporal-sql-tool --db "$database" create
    temporal-sql-tool --db "$database" setup-schema -v 0.0
    temporal-sql-tool --db "$database" update-schema --schema-name "$schema"
done
