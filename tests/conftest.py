"What every test starts from: no data or weights of this machine, no progress bars."
import os

import pytest

os.environ['TQDM_DISABLE'] = '1'  # read when tqdm is imported; a bar must not get into what is compared, however slow the machine


@pytest.fixture(scope='session', autouse=True)
def bare():
    "For fixtures of wide scope too"
    with pytest.MonkeyPatch.context() as m:
        for name in ('NVS_DATA', 'NVS_VGG16'): m.delenv(name, raising=False)
        yield
