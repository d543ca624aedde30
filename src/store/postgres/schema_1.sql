-- Texts are compared byte by byte ("C"), as the program does. Times are Unix seconds.

CREATE TABLE doorward_schema (
    alone boolean PRIMARY KEY DEFAULT true CHECK (alone),
    version integer NOT NULL
);
INSERT INTO doorward_schema (version) VALUES (0);

CREATE TABLE doorward_account (
    id text COLLATE "C" PRIMARY KEY,
    username text COLLATE "C" NOT NULL UNIQUE,
    password_hash text NOT NULL,
    groups text[] NOT NULL,
    email text NOT NULL,
    display_name text NOT NULL,
    disabled boolean NOT NULL,
    version bigint NOT NULL,
    created bigint NOT NULL,
    changed bigint NOT NULL,
    revision bigint NOT NULL
);

CREATE TABLE doorward_session (
    id text COLLATE "C" PRIMARY KEY,
    account text COLLATE "C" NOT NULL,
    created bigint NOT NULL,
    renewed bigint NOT NULL,
    expires bigint NOT NULL,
    address text NOT NULL,
    user_agent text NOT NULL
);
CREATE INDEX doorward_session_account ON doorward_session (account);
CREATE INDEX doorward_session_expires ON doorward_session (expires);

-- The one row whose lock hands out the numbers of the log: whoever has a number holds the row until he commits, so
-- numbers become visible in their order. The mark is a new random one with every change: a number that comes a second
-- time, after a restore or a failover, comes with another mark.
CREATE TABLE doorward_log_head (
    alone boolean PRIMARY KEY DEFAULT true CHECK (alone),
    number bigint NOT NULL,
    mark uuid NOT NULL
);
INSERT INTO doorward_log_head (number, mark) VALUES (0, gen_random_uuid());

CREATE TABLE doorward_log (
    number bigint PRIMARY KEY,
    mark uuid NOT NULL,
    what jsonb NOT NULL,
    at bigint NOT NULL,
    expires bigint NOT NULL
);
CREATE INDEX doorward_log_expires ON doorward_log (expires);

-- Wrong passwords. The bucket is a hash of a client network and a name.
CREATE TABLE doorward_wrong_try (
    bucket bytea NOT NULL,
    at timestamptz NOT NULL,
    expires timestamptz NOT NULL
);
CREATE INDEX doorward_wrong_try_bucket ON doorward_wrong_try (bucket, at);
CREATE INDEX doorward_wrong_try_expires ON doorward_wrong_try (expires);
