-- The time that clearing away goes by, and what was cleared away; see `Settled` and `Forgotten` in the program. Times are
-- Unix seconds. A `settled` of 0: nobody has looked at a clock yet.
CREATE TABLE doorward_time (
    alone boolean PRIMARY KEY DEFAULT true CHECK (alone),
    settled bigint NOT NULL DEFAULT 0,
    seen bigint NOT NULL DEFAULT 0,
    longest bigint NOT NULL DEFAULT 0,
    forgotten_until bigint NOT NULL DEFAULT 0,
    forgotten_number bigint NOT NULL DEFAULT 0,
    forgotten_at bigint NOT NULL DEFAULT 0
);
INSERT INTO doorward_time DEFAULT VALUES;
