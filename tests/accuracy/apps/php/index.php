<?php
// A service in PHP: see serve.py. Nothing outlives a request, so each opens connections of its
// own. Behaviour as ../go/main.go has it.
declare(strict_types=1);

const ROUTES = [
    'sequential' => ['a' => [['h1'], ['h2']], 'b' => [['h2'], ['h3']], 'c' => [], 'd' => [['h1']]],
    'parallel-background' => ['a' => [['h1'], ['h2']], 'b' => [['h2', 'h3'], ['h1']], 'c' => [], 'd' => [['h1']]],
];
// What a call asks for, without and with the user that the request named.
const PATHS = [
    'h1' => ['/items', '/items?user=%s'],
    'h2' => ['/profiles', '/profiles/%s'],
    'h3' => ['/ratings', '/ratings/%s/all'],
];

// One for each service, as in the other languages.
$clients = [];

function cpu_ms(): float
{
    $used = getrusage();
    return 1000 * ($used['ru_utime.tv_sec'] + $used['ru_stime.tv_sec'])
        + ($used['ru_utime.tv_usec'] + $used['ru_stime.tv_usec']) / 1000;
}

// CPU time, as much as is asked for.
function work(): void
{
    $gaussian = sqrt(-2 * log(1 - lcg_value())) * cos(2 * M_PI * lcg_value());
    $till = cpu_ms() + (float) getenv('WORK_MS') * exp(0.5 * $gaussian);
    while (cpu_ms() < $till) {
    }
}

function client(string $host, string $user, string $truth): CurlHandle
{
    global $clients;
    $client = $clients[$host] ??= curl_init();
    $headers = ["Host: $host", 'Content-Type: text/plain'];
    if (getenv('FORWARD') === 'request-id' && isset($_SERVER['HTTP_X_REQUEST_ID'])) {
        $headers[] = 'X-Request-Id: ' . $_SERVER['HTTP_X_REQUEST_ID'];
    } elseif (getenv('FORWARD') === 'truth') {
        $headers[] = 'X-Truth: ' . explode(' ', $truth)[0];
    }
    $path = $user === '' ? PATHS[$host][0] : sprintf(PATHS[$host][1], $user);
    curl_setopt_array($client, [
        CURLOPT_URL => 'http://127.0.0.1:' . getenv('OUTBOUND') . $path,
        CURLOPT_POSTFIELDS => $truth,
        CURLOPT_HTTPHEADER => $headers,
        CURLOPT_RETURNTRANSFER => true,
    ]);
    return $client;
}

function call_all(array $hosts, string $user, string $truth): void
{
    $called = array_map(fn ($host) => client($host, $user, $truth), $hosts);
    if (count($called) === 1) {
        curl_exec($called[0]);
    } else {
        $all = curl_multi_init();
        foreach ($called as $client) {
            curl_multi_add_handle($all, $client);
        }
        do {
            curl_multi_exec($all, $running);
            curl_multi_select($all);
        } while ($running);
        foreach ($called as $client) {
            curl_multi_remove_handle($all, $client);
        }
    }
    foreach ($called as $client) {
        $status = curl_getinfo($client, CURLINFO_RESPONSE_CODE);
        if ($status !== 200) {
            throw new RuntimeException("status $status " . curl_error($client));
        }
    }
}

$truth = file_get_contents('php://input');
$parts = explode('/', parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH));
$user = $parts[1] === 'users' ? $parts[2] : '';
work();
foreach (ROUTES[getenv('VARIANT')][end($parts)] as $hosts) {
    call_all($hosts, $user, $truth);
    work();
}
header('Content-Type: text/plain');
echo 'ok';
