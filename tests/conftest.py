"What every test starts from: no data or weights of this machine, no progress bars."
import contextlib
import os
import signal

import pytest

os.environ['TQDM_DISABLE'] = '1'  # read when tqdm is imported: no bar in what is compared, however slow the machine

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts its background jobs; tests send this signal
    with contextlib.suppress(ValueError): signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session', autouse=True)
def bare():
    "For fixtures of wide scope too"
    with pytest.MonkeyPatch.context() as m:
        for name in ('NVS_DATA', 'NVS_VGG16'): m.delenv(name, raising=False)
        yield
