"""What determines how a request is decoded: the checkpoint's `mtp` blocks, the server's options, the request's options.

    config.json: mtp                 what the model was trained for: k and the id of the mask token
    generation_config.json: mtp      the checkpoint's defaults for decoding: policy, threshold, k
    --additional-config {"mtp": ..}  the same three for this server; enabled: false for plain vLLM; adaptive: false to
                                     feed all masks that a request may have, even if that is slower
    a request's extra_args           mtp_policy, mtp_threshold, mtp_k (over HTTP: vllm_xargs)

A server whose policy is exact or next-token confirms every token, and refuses requests with a policy that does not. A
server that is started with confadapt or static accepts requests of every policy.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from multitoken.decoding.failures import DecodingError
from multitoken.decoding.policies import (
    POLICY_OPTIONS,
    NextToken,
    Policy,
    as_options,
    layered_policy,
    make_policy,
    with_trained_k,
)
from multitoken.errors import ModelError, UsageError, nearest
from multitoken.models.mtp_config import MtpConfig

KEY = "mtp"  # of config.json, of generation_config.json and of additional_config
RESOLVED = "mtp_resolved"  # key of additional_config where every process of a server finds all settings
ADAPTED = "mtp_adapted"  # key of additional_config for a digest of a gated adapter's config
_SWITCHES = ("enabled", "adaptive")
_POLICY = tuple(name for name in POLICY_OPTIONS if name != "branches")  # vLLM's attention does not support them
_SERVER = (*_POLICY, *_SWITCHES)
_REQUEST = tuple(f"mtp_{name}" for name in _POLICY)
_OFF = '--additional-config \'{"mtp": {"enabled": false}}\''


@dataclass(frozen=True)
class Settings:
    """How a server decodes. `k`: the most tokens per step that it is set up for, at most the trained k."""

    mask_id: int
    k: int
    policy: Policy
    adapter: str | None = None  # the folder of a gated adapter
    head: str | None = None  # the file of a draft head
    adaptive: bool = True  # the number of masks of verified requests is chosen for speed

    @property
    def lossless(self) -> bool:
        """Whether every token is confirmed. Then vLLM's own bookkeeping is correct as it is."""
        return self.policy.verifies or isinstance(self.policy, NextToken)

    @property
    def drafts(self) -> int:
        """The most tokens that vLLM calls draft tokens: the drafts of a verified block and the masks after them."""
        return 2 * (self.k - 1)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for the other processes of a server."""
        policy = {"name": self.policy.name, **asdict(self.policy)}
        return {
            "mask_id": self.mask_id,
            "k": self.k,
            "policy": policy,
            "adapter": self.adapter,
            "head": self.head,
            "adaptive": self.adaptive,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        options = dict(values["policy"])
        policy = make_policy(options.pop("name"), **options)
        return cls(values["mask_id"], values["k"], policy, values["adapter"], values["head"], values["adaptive"])


def is_enabled(additional: Any) -> bool:
    """Whether the server's options leave multi-token decoding on. Raises `UsageError` for invalid options."""
    return bool(_server_options(additional).get("enabled", True))


def is_asked_for(additional: Any) -> bool:
    """Whether the server's options mention multi-token decoding at all."""
    return isinstance(additional, Mapping) and KEY in additional


def resolve(block: Any, generation: Any, additional: Any, vocabulary: int) -> Settings:
    """The settings of a server. block, generation: the `mtp` of config.json and of generation_config.json, if any.

    Raises `ModelError` for a broken block and `UsageError` for invalid options.
    """
    try:
        trained = MtpConfig.from_block(block, "config.json")
        if trained.method != "gated":  # a gated adapter brings its own vector for the mask
            trained.check_vocabulary(vocabulary)
    except ModelError as error:
        raise ModelError(
            f"{error}; if this block is not multitoken's, serve the model as an ordinary one: {_OFF}"
        ) from error
    if generation is not None and not isinstance(generation, Mapping):
        raise ModelError(
            f"generation_config.json: mtp is {generation!r}; expected an object, such as {{'policy': 'exact'}}"
        )
    checkpoint = {name: value for name, value in (generation or {}).items() if name in _POLICY}
    options = _server_options(additional)
    server = {name: value for name, value in options.items() if name in _POLICY}
    try:
        policy = layered_policy({"policy": "exact"}, checkpoint, server)
        if isinstance(policy, NextToken):
            return Settings(trained.mask_token_id, trained.k, policy)
        policy = with_trained_k(policy, trained.k)
    except DecodingError as error:
        source = "additional_config" if server else "generation_config.json"
        raise UsageError(f"{source}: mtp: {error}") from error
    assert policy.k is not None
    if policy.k == 1:
        raise UsageError("mtp.k is 1, which is next-token decoding; use policy 'next-token', or choose k >= 2")
    return Settings(trained.mask_token_id, policy.k, policy, adaptive=bool(options.get("adaptive", True)))


def request_policy(settings: Settings, extra: Mapping[str, Any] | None) -> Policy:
    """The policy of a request with these extra_args. Raises `DecodingError` for invalid ones."""
    given = {name: value for name, value in (extra or {}).items() if str(name).startswith("mtp")}
    if not given:
        return settings.policy
    for name in given:
        if name not in _REQUEST:
            raise DecodingError(f"unknown option {name!r}{nearest(name, _REQUEST)}")
    options = {name.removeprefix("mtp_"): value for name, value in given.items()}
    default = as_options(settings.policy)
    policy = layered_policy(default, options)
    if not isinstance(policy, NextToken) and policy.k is not None and policy.k > settings.k:
        raise DecodingError(
            f"mtp_k is {policy.k}, but this server is set up for k up to {settings.k}; choose k <= {settings.k}"
        )
    policy = with_trained_k(policy, settings.k)
    if settings.lossless and not policy.verifies and policy.k != 1:
        raise DecodingError(
            f"mtp_policy is {policy.name!r}, whose tokens are not confirmed, but this server (policy "
            f"{settings.policy.name}) confirms every token; choose exact or next-token, or start the server with "
            f'--additional-config \'{{"mtp": {{"policy": "{policy.name}"}}}}\''
        )
    return policy


def _server_options(additional: Any) -> Mapping[str, Any]:
    options = additional.get(KEY) if isinstance(additional, Mapping) else None
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise UsageError(f"additional_config: mtp is {options!r}; expected an object with some of {', '.join(_SERVER)}")
    for name in options:
        if name not in _SERVER:
            raise UsageError(f"additional_config: mtp has no option {name!r}{nearest(str(name), _SERVER)}")
    for name in _SWITCHES:
        if not isinstance(options.get(name, True), bool):
            raise UsageError(f"additional_config: mtp.{name} is {options[name]!r}; expected true or false")
    return options
