// What the driver has SQLite compiled with and the outbox does not use. The static
// build includes this file before each C file.
#undef SQLITE_ENABLE_FTS3
#undef SQLITE_ENABLE_FTS3_PARENTHESIS
#undef SQLITE_ENABLE_FTS4_UNICODE61
#undef SQLITE_ENABLE_RTREE
