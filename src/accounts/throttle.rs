//! How many wrong passwords a client network may try for one account.
