# Copied into a checkpoint by the tests: a reward model that brings its own code, built as ArmoRM is. It reads the end
# of the chat for the objectives and the end of the prompt for their weights, and imports a name transformers 5 lacks.
from dataclasses import dataclass

import torch
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING  # noqa: F401
from transformers.utils import ModelOutput


@dataclass
class Judged(ModelOutput):
    rewards: torch.Tensor = None
    score: torch.Tensor = None
    logits: torch.Tensor = None


class RewardsWithGate(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.objectives = torch.nn.Linear(config.hidden_size, config.num_objectives, bias=False)
        self.gate = torch.nn.Linear(config.hidden_size, config.num_objectives)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        states = self.model(input_ids, attention_mask=attention_mask)[0]
        mark = (input_ids[0] == self.config.gate_token_id).nonzero()[-1, 0]
        rewards = self.objectives(states[:, -1])
        score = (torch.softmax(self.gate(states[:, mark]), 1) * rewards).sum(1)
        return Judged(rewards=rewards, score=score, logits=rewards)
