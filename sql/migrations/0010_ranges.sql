-- Ranges of both families of addresses: 32 hexadecimal digits sort as they do. IPv4 addresses are where IPv6 maps them.
CREATE TABLE range_lease (
  scope {TEXT} NOT NULL,
  first {TEXT} NOT NULL,
  last {TEXT} NOT NULL,
  holder {TEXT} NOT NULL REFERENCES resource (id),
  key {TEXT} NOT NULL,
  PRIMARY KEY (scope, first)
);
INSERT INTO range_lease (scope, first, last, holder, key)
  SELECT scope,
    '00000000000000000000ffff' || substr('0123456789abcdef', CAST((first / 268435456) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((first / 16777216) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((first / 1048576) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((first / 65536) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((first / 4096) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((first / 256) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((first / 16) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((first / 1) % 16 AS INTEGER) + 1, 1),
    '00000000000000000000ffff' || substr('0123456789abcdef', CAST((last / 268435456) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((last / 16777216) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((last / 1048576) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((last / 65536) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((last / 4096) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((last / 256) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((last / 16) % 16 AS INTEGER) + 1, 1) || substr('0123456789abcdef', CAST((last / 1) % 16 AS INTEGER) + 1, 1),
    holder, key
  FROM prefix_lease;
DROP TABLE prefix_lease;
CREATE INDEX range_lease_holder ON range_lease (holder, scope);
