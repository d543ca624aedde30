<?php
// Answers with what a PHP program sees of a request: `php -S 127.0.0.1:PORT seen.php`.
header('Content-Type: application/json');
echo json_encode(['server' => $_SERVER, 'headers' => getallheaders(), 'cookies' => $_COOKIE],
    JSON_INVALID_UTF8_SUBSTITUTE);
